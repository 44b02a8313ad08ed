"""What a trained CaFe or CaFePlus has learned, as the papers show it.

Attention: the mean weights of the first layer over test users, Figure 2 of CaFe's paper, for the items' tower, its
local heads and the intents' tower. Items: their vectors by t-SNE, coloured by intent, and the normalised mutual
information of k-means clusters with the intents, as in SINE's paper. Files lie beside the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_cafe.benchmark.figures import COLOURS, STYLE, save_figure
from recbole_cafe.errors import ConfigError, DataError, missing_package
from recbole_cafe.host.reload import load_data_and_model
from recbole_cafe.model.base import NetRecommender
from recbole_cafe.model.cafe import Towers

NEWEST = 20  # positions of the heat maps
BATCH = 256  # users at a time
N_INTENTS = len(COLOURS)  # whose items are drawn: those of the most interactions
MOST_ITEMS = 2000  # that are drawn


@dataclass
class MeanAttention:
    """Mean weights of one kind of heads; `total` and `users` [W, W] by query and key, both counted from the newest."""

    total: np.ndarray
    users: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """[W, W], NaN where no history reaches."""
        return np.divide(self.total, self.users, out=np.full(self.total.shape, np.nan), where=self.users > 0)


def mean_attention(net: Towers, histories: Tensor, newest: int = NEWEST) -> dict[str, MeanAttention]:
    """Mean attention of the first layer over histories, and over heads of one kind.

    Args:
        net: in evaluation mode.
        histories: [B, L] item ids, the oldest first, padded with 0 on the right.
        newest: W, how many of the newest positions.

    Returns:
        "items, global heads", "items, local heads" and "intents" -> their weights; a kind the net lacks is left out.
    """
    kinds: dict[str, MeanAttention] = {}
    for history in histories.split(BATCH):
        packing, towers = net.first_attention(history)
        for tower, groups in towers.items():
            for weights, real in zip(groups, packing.real_of_groups, strict=True):
                for kind, own in _kinds(net, tower, weights).items():
                    total, users = _from_the_newest(own.mean(1), real.sum(1), newest)
                    mean = kinds.setdefault(kind, MeanAttention(np.zeros((newest, newest)), np.zeros((newest, newest))))
                    mean.total += total
                    mean.users += users
    return kinds


def _kinds(net: Towers, tower: str, weights: Tensor) -> dict[str, Tensor]:
    """[b, M, l, l] by kind of heads. Local heads are the last ones, and the intents' tower has none."""
    if tower == "intents":
        return {tower: weights}
    attention = net.item_encoder.blocks[0].attention
    split = attention.n_heads - attention.n_local_heads
    kinds = {f"{tower}, global heads": weights[:, :split], f"{tower}, local heads": weights[:, split:]}
    return {kind: own for kind, own in kinds.items() if own.shape[1]}


def _from_the_newest(weights: Tensor, length: Tensor, newest: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums over rows, and how many rows there are, by query and key counted from the newest position.

    Args:
        weights: [b, l, l].
        length: [b] of the rows.
        newest: W.
    """
    at = length[:, None] - 1 - torch.arange(newest)  # [b, W]
    real, at = at >= 0, at.clamp(min=0)
    rows = torch.arange(len(at))[:, None, None]
    there = real[:, :, None] & real[:, None, :]  # [b, W, W]
    picked = weights.double()[rows, at[:, :, None], at[:, None, :]].where(there, 0.0)
    return picked.sum(0).numpy(), there.sum(0).double().numpy()


def write_attention(checkpoint: Path) -> list[Path]:
    """Draw the mean attention of the first layers: `NAME.attention.png`, `.svg` and `.csv` beside `NAME.pth`.

    Args:
        checkpoint: of CaFe or CaFePlus, with its data where they were.

    Returns:
        the files.

    Raises:
        ConfigError: another model. DataError: nothing was held out for a test. CheckpointError: see
            :func:`load_data_and_model`. MachineError: no matplotlib.
    """
    matplotlib = _matplotlib()
    config, model, _, _, _, test = load_data_and_model(checkpoint)
    net = _towers(config, model)
    if test is None:
        raise DataError(f"{checkpoint} was trained on all interactions: there are no test users to average over")
    rows = test._dataset[torch.arange(len(test._dataset))]
    kinds = mean_attention(net, rows[model.ITEM_SEQ].cpu())
    reached = max(int((kind.users > 0).any(1).sum()) for kind in kinds.values())
    lines = [
        {"heads": name, "query": i, "key": j, "weight": kind.mean[i, j], "users": int(kind.users[i, j])}
        for name, kind in kinds.items() for i in range(reached) for j in range(i, reached) if kind.users[i, j]
    ]  # fmt: skip
    title = f"{config['model']} on {config['dataset']}: first layer, mean over {len(rows)} test users"
    with matplotlib.rc_context(STYLE):
        return save_figure(checkpoint.parent, f"{checkpoint.stem}.attention", _maps(kinds, reached, title), lines)


def _maps(kinds: Mapping[str, MeanAttention], reached: int, title: str) -> Any:
    """A heat map for each kind of heads, all on one scale, the newest position below and on the right."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(0.8 + 2.9 * len(kinds), 3.3))
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    top = max(float(np.nanmax(kind.mean[:reached, :reached])) for kind in kinds.values())
    shown = None
    for axes, (name, kind) in zip(panels, kinds.items(), strict=True):
        future = np.tril(np.ones((reached, reached), dtype=bool), -1)
        values = np.ma.masked_where(future, kind.mean[:reached, :reached])
        edges = (-0.5, reached - 0.5)
        shown = axes.imshow(values, cmap="viridis", vmin=0, vmax=top, extent=(*edges, *edges[::-1]))
        axes.set_xlim(edges[::-1])
        axes.set_ylim(edges)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("key, steps before the newest")
        axes.set_title(name, fontsize=9)
    panels[0].set_ylabel("query, steps before the newest")
    figure.colorbar(shown, ax=list(panels), shrink=0.8, label="mean weight")
    figure.suptitle(title, fontsize=9)
    return figure


def write_items(checkpoint: Path) -> list[Path]:
    """Draw the item vectors by t-SNE, coloured by intent: `NAME.items.png`, `.svg` and `.csv` beside `NAME.pth`.

    The items are the most frequent ones, up to MOST_ITEMS, of the N_INTENTS intents of the most interactions. The
    vectors are scaled to length 1, as for `similar`. NMI is of N_INTENTS clusters of k-means of them with the intents;
    beside it stands the NMI with the intents shuffled, which is what chance gives.

    Args:
        checkpoint: of CaFe or CaFePlus, with its data where they were.

    Returns:
        the files.

    Raises:
        ConfigError: another model, or one whose items have no vectors. DataError: fewer than two intents, or too few
            items. CheckpointError: see :func:`load_data_and_model`. MachineError: no matplotlib or scikit-learn.
    """
    matplotlib = _matplotlib()
    config, model, _, train, _, _ = load_data_and_model(checkpoint)
    net = _towers(config, model)
    dataset = train._dataset
    names = dataset.field2id_token[config["INTENT_FIELD"]]
    seen = torch.bincount(dataset.user_items()[1].cpu(), minlength=dataset.item_num).numpy()
    item2intent = net.item2intent.cpu().numpy()
    chosen, intents = frequent_items(seen, item2intent, len(names))
    if len(intents) < 2 or len(chosen) < 2 * len(intents):
        raise DataError(f"{checkpoint}: {len(chosen)} items of {len(intents)} intents were trained on, too few to draw")
    vectors = net.item_embedding.weight.detach().cpu().double().numpy()[chosen]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    places, nmi, chance = project(vectors, item2intent[chosen])
    tokens = dataset.field2id_token[dataset.iid_field]
    lines = [
        {"item": str(tokens[i]), "intent": str(names[item2intent[i]]), "interactions": int(seen[i]), "x": float(x),
         "y": float(y), "nmi": nmi, "nmi_shuffled": chance}
        for i, (x, y) in zip(chosen, places, strict=True)
    ]  # fmt: skip
    title = (f"{config['model']} on {config['dataset']}: t-SNE of {len(chosen)} item vectors\n"
             f"NMI of clusters and intents {nmi:.3f} (shuffled intents: {chance:.3f})")  # fmt: skip
    labels = {int(intent): str(names[intent]) for intent in intents}
    with matplotlib.rc_context(STYLE):
        drawn = _scatter(places, item2intent[chosen], labels, title)
        return save_figure(checkpoint.parent, f"{checkpoint.stem}.items", drawn, lines)


def frequent_items(seen: np.ndarray, item2intent: np.ndarray, n_intents: int) -> tuple[np.ndarray, np.ndarray]:
    """Which items are drawn, see :func:`write_items`.

    Args:
        seen: [V] interactions of each item.
        item2intent: [V], from 1; `n_intents` for an item without intent.
        n_intents: C, padding included.

    Returns:
        item ids in their order, and intents, the most frequent first.
    """
    known = (seen > 0) & (item2intent > 0) & (item2intent < n_intents)
    share = np.bincount(item2intent[known], weights=seen[known], minlength=n_intents)
    intents = np.argsort(-share, kind="stable")[:N_INTENTS]
    intents = intents[share[intents] > 0]
    items = np.flatnonzero(known & np.isin(item2intent, intents))
    return np.sort(items[np.argsort(-seen[items], kind="stable")[:MOST_ITEMS]]), intents


def project(vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float, float]:
    """t-SNE, and how well clusters agree with labels.

    Args:
        vectors: [n, D] of length 1.
        labels: [n].

    Returns:
        [n, 2] places; the normalised mutual information of the labels with as many clusters of k-means; the same with
        the labels shuffled.

    Raises:
        MachineError: no scikit-learn.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.manifold import TSNE
        from sklearn.metrics import normalized_mutual_info_score
    except ImportError as error:
        raise missing_package(error, "benchmark") from error
    clusters = KMeans(len(np.unique(labels)), n_init=10, random_state=0).fit_predict(vectors)
    shuffled = np.random.default_rng(0).permutation(labels)
    places = TSNE(2, init="pca", perplexity=min(30, (len(vectors) - 1) / 3), random_state=0).fit_transform(vectors)
    nmi, chance = (float(normalized_mutual_info_score(of, clusters)) for of in (labels, shuffled))
    return places, nmi, chance


def _scatter(places: np.ndarray, labels: np.ndarray, names: Mapping[int, str], title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.4))
    axes = figure.subplots()
    for colour, (label, name) in zip(COLOURS, names.items(), strict=False):
        x, y = places[labels == label].T
        axes.scatter(
            x, y, s=7, color=colour, linewidths=0, alpha=0.8, label=name if len(name) < 28 else f"{name[:25]}..."
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, loc="left", fontsize=9)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7, markerscale=2)
    return figure


def _towers(config: Any, model: Any) -> Towers:
    """The net of CaFe or CaFePlus, to be looked at.

    Raises:
        ConfigError: it is another one, or its items have no vectors that were trained.
    """
    if not isinstance(model, NetRecommender) or not isinstance(model.network, Towers):
        raise ConfigError(f"model={config['model']}: these figures are of CaFe and CaFePlus")
    if config["model"] == "CaFePlus" and not config["item_net"]:
        raise ConfigError("item_net=False: the items of this CaFePlus have no vectors that were trained")
    return model.network.cpu().eval()


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise missing_package(error, "benchmark") from error
    return matplotlib
