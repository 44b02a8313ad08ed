"""What a trained CaFe, CaFePlus or SAIR has learned, as the papers show it.

Attention: the mean weights of the first layer over test users, Figure 2 of CaFe's paper and the heat map of SAIR's, for
each kind of heads. Items: their vectors by t-SNE, coloured by intent, and the normalised mutual information of k-means
clusters with the intents, as in SINE's paper. Files lie beside the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_cafe.benchmark.figures import COLOURS, GREY, STYLE, save_figure
from recbole_cafe.errors import ConfigError, DataError, missing_package
from recbole_cafe.files.whole import write_json
from recbole_cafe.host.reload import load_data_and_model
from recbole_cafe.model.base import NetRecommender
from recbole_cafe.model.cafe import Towers
from recbole_cafe.model.peers.sair import SAIRNet

NEWEST = 20  # positions of the heat maps
BATCH = 256  # users at a time
N_INTENTS = len(COLOURS)  # whose items are drawn: those of the most interactions
MOST_ITEMS = 2000  # that are drawn

# Attention ------------------------------------------------------------------------------------------------------------


@dataclass
class MeanAttention:
    """Mean weights of one kind of heads over users; all [W, W] are by query and key, both counted from the newest.

    Attributes:
        total: [W, W] sums of weights.
        users: [W, W] how many users have both positions.
        even: [W, W] sums of the weights that a query would give if it gave all its positions the same.
        entropy: sum of the entropies of what the newest position gives, over heads' mean, each over the largest that
            its history allows: 1 if all positions get the same, 0 if one gets everything.
        long: histories with two positions or more, whose entropies these are.
    """

    total: np.ndarray
    users: np.ndarray
    even: np.ndarray
    entropy: float = 0.0
    long: int = 0

    @property
    def mean(self) -> np.ndarray:
        """[W, W], NaN where no history reaches."""
        return self._over_users(self.total)

    @property
    def mean_even(self) -> np.ndarray:
        """[W, W], as `mean`."""
        return self._over_users(self.even)

    def _over_users(self, values: np.ndarray) -> np.ndarray:
        return np.divide(values, self.users, out=np.full(values.shape, np.nan), where=self.users > 0)


def mean_attention(net: Towers | SAIRNet, histories: Tensor, newest: int = NEWEST) -> dict[str, MeanAttention]:
    """Mean attention of the first layer over histories, and over heads of one kind.

    Args:
        net: in evaluation mode.
        histories: [B, L] item ids, the oldest first, padded with 0 on the right.
        newest: W, how many of the newest positions.

    Returns:
        kind of heads, as `first_attention` of the net names them -> their weights.
    """
    kinds: dict[str, MeanAttention] = {}
    for history in histories.split(BATCH):
        packing, shown = net.first_attention(history)
        for name, groups in shown.items():
            kind = kinds.setdefault(name, MeanAttention(*np.zeros((3, newest, newest))))
            for weights, real in zip(groups, packing.real_of_groups, strict=True):
                _add(kind, weights.double(), real.sum(1))
    return kinds


def _add(kind: MeanAttention, weights: Tensor, length: Tensor) -> None:
    """Add rows to the sums of their kind.

    Args:
        kind: the sums.
        weights: [b, M, l, l].
        length: [b] of the rows.
    """
    at = length[:, None] - 1 - torch.arange(len(kind.users))  # [b, W]
    real, at = at >= 0, at.clamp(min=0)
    rows = torch.arange(len(at))[:, None, None]
    there = real[:, :, None] & real[:, None, :]  # [b, W, W]
    picked = weights.mean(1)[rows, at[:, :, None], at[:, None, :]].where(there, 0.0)
    even = (1.0 / (at + 1.0))[:, :, None] * (there & (at[:, None, :] <= at[:, :, None]))
    kind.total += picked.sum(0).numpy()
    kind.users += there.sum(0).double().numpy()
    kind.even += even.sum(0).numpy()
    long = torch.arange(len(length))[length > 1]
    given = weights[long, :, length[long] - 1]  # [c, M, l], 0 beyond the end
    entropy = -torch.xlogy(given, given).sum(2).mean(1) / length[long].double().log()
    kind.entropy += float(entropy.sum())
    kind.long += len(long)


def write_attention(checkpoints: Sequence[Path]) -> list[Path]:
    """Draw the mean attention of the first layers, a row for each checkpoint and all on one scale.

    Beside the first checkpoint, `NAME.pth`: `NAME.attention.png` and `.svg`, `.csv` with every weight, and `.json`
    with what the newest position gives.

    Args:
        checkpoints: of CaFe, CaFePlus or SAIR, with their data where they were.

    Returns:
        the files.

    Raises:
        ConfigError: another model. DataError: nothing was held out for a test. CheckpointError: see
            :func:`load_data_and_model`. MachineError: no matplotlib.
    """
    matplotlib = _matplotlib()
    shown = [_attention_of(checkpoint) for checkpoint in checkpoints]
    lines = [
        {"model": one.model, "dataset": one.dataset, "heads": name, "query": i, "key": j, "weight": kind.mean[i, j],
         "even": kind.mean_even[i, j], "users": int(kind.users[i, j])}
        for one in shown for name, kind in one.kinds.items()
        for i in range(one.reached) for j in range(i, one.reached) if kind.users[i, j]
    ]  # fmt: skip
    first = checkpoints[0]
    with matplotlib.rc_context(STYLE):
        written = save_figure(first.parent, f"{first.stem}.attention", _maps(shown), lines)
    facts = first.with_name(f"{first.stem}.attention.json")
    write_json(facts, {"rows": [one.facts() for one in shown]})
    return [*written, facts]


@dataclass(frozen=True)
class Shown:
    """The attention of a model over its test users."""

    model: str
    dataset: str
    users: int
    kinds: Mapping[str, MeanAttention]

    @property
    def reached(self) -> int:
        """How many of the newest positions any history has."""
        return max(int((kind.users > 0).any(1).sum()) for kind in self.kinds.values())

    def facts(self) -> dict[str, Any]:
        """What the newest position gives, by steps before it, kind by kind."""
        at = slice(0, self.reached)
        heads = {name: {"newest": kind.mean[0, at].tolist(), "even": kind.mean_even[0, at].tolist(),
                        "users": kind.users[0, at].astype(int).tolist(), "long": kind.long,
                        "entropy": kind.entropy / kind.long if kind.long else None}
                 for name, kind in self.kinds.items()}  # fmt: skip
        return {"model": self.model, "dataset": self.dataset, "test_users": self.users, "heads": heads}


def _attention_of(checkpoint: Path) -> Shown:
    config, model, _, _, _, test = load_data_and_model(checkpoint)
    net = _net(config, model)
    if test is None:
        raise DataError(f"{checkpoint} was trained on all interactions: there are no test users to average over")
    rows = test._dataset[torch.arange(len(test._dataset))]
    kinds = mean_attention(net, rows[model.ITEM_SEQ].cpu())
    return Shown(config["model"], config["dataset"], len(rows), kinds)


def _maps(shown: Sequence[Shown]) -> Any:
    """A row for each model: a heat map for each kind of heads, and what the newest position gives, as lines."""
    from matplotlib.figure import Figure

    columns = 1 + max(len(one.kinds) for one in shown)
    figure = Figure(figsize=(1.2 + 2.7 * columns, 0.4 + 3.0 * len(shown)))
    panels = figure.subplots(len(shown), columns, squeeze=False)
    top = max(float(np.nanmax(kind.mean)) for one in shown for kind in one.kinds.values())
    highest = 1.05 * max(float(np.nanmax(kind.mean[0])) for one in shown for kind in one.kinds.values())
    image = None
    for row, one in zip(panels, shown, strict=True):
        for axes, (name, kind) in zip(row, one.kinds.items(), strict=False):
            image = _map(axes, kind.mean[: one.reached, : one.reached], top)
            axes.set_title(name, fontsize=9)
        for axes in row[len(one.kinds) : -1]:
            axes.set_axis_off()
        row[0].set_ylabel(f"{one.model} on {one.dataset}\n{one.users:,} test users\n\nfrom: steps before the newest")
        _lines(row[-1], one, highest)
    figure.colorbar(image, ax=panels.ravel().tolist(), shrink=0.7, label="mean weight")
    figure.suptitle("What the first layer attends to, mean over test users", fontsize=10)
    return figure


def _map(axes: Any, values: np.ndarray, top: float) -> Any:
    """A heat map, the newest position below and on the right."""
    from matplotlib.ticker import MaxNLocator

    reached = len(values)
    future = np.tril(np.ones((reached, reached), dtype=bool), -1)
    edges = (-0.5, reached - 0.5)
    image = axes.imshow(np.ma.masked_where(future, values), cmap="viridis", vmin=0, vmax=top,
                        extent=(*edges, *edges[::-1]))  # fmt: skip
    axes.set_xlim(edges[::-1])
    axes.set_ylim(edges)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("to: steps before the newest")
    return image


def _lines(axes: Any, one: Shown, highest: float) -> None:
    """What the newest position gives to those before it, beside what it would give to all alike."""
    from matplotlib.ticker import MaxNLocator

    steps = np.arange(one.reached)
    for colour, (name, kind) in zip(COLOURS, one.kinds.items(), strict=False):
        axes.plot(steps, kind.mean[0, : one.reached], "o-", color=colour, markersize=2.5, linewidth=1.2, label=name)
        even = kind.mean_even[0, : one.reached]  # of every kind the same
    axes.plot(steps, even, "--", color=GREY, linewidth=1.2, label="all positions alike")
    axes.set_xlim(one.reached - 0.5, -0.5)
    axes.set_ylim(0, highest)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("to: steps before the newest")
    axes.set_title("from the newest position", fontsize=9)
    axes.legend(fontsize=7, frameon=False)


# Items ----------------------------------------------------------------------------------------------------------------


def write_items(checkpoint: Path) -> list[Path]:
    """Draw the item vectors by t-SNE, coloured by intent.

    `NAME.items.png`, `.svg`, `.csv` with every item and `.json` with the NMI lie beside `NAME.pth`.

    The items are the most frequent ones, up to MOST_ITEMS, of the N_INTENTS intents of the most interactions. The
    vectors are scaled to length 1, as for `similar`. NMI is of N_INTENTS clusters of k-means of them with the intents;
    beside it stands the NMI with the intents shuffled, which is what chance gives.

    Args:
        checkpoint: of CaFe, CaFePlus or SAIR, with its data where they were.

    Returns:
        the files.

    Raises:
        ConfigError: another model, or one whose items have no vectors. DataError: fewer than two intents, or too few
            items. CheckpointError: see :func:`load_data_and_model`. MachineError: no matplotlib or scikit-learn.
    """
    matplotlib = _matplotlib()
    config, model, _, train, _, _ = load_data_and_model(checkpoint)
    net = _net(config, model)
    if config["model"] == "CaFePlus" and not config["item_net"]:
        raise ConfigError("item_net=False: the items of this CaFePlus have no vectors that were trained")
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
         "y": float(y)}
        for i, (x, y) in zip(chosen, places, strict=True)
    ]  # fmt: skip
    title = (f"{config['model']} on {config['dataset']}: t-SNE of {len(chosen)} item vectors\n"
             f"NMI of clusters and intents {nmi:.3f} (shuffled intents: {chance:.3f})")  # fmt: skip
    labels = {int(intent): str(names[intent]) for intent in intents}
    with matplotlib.rc_context(STYLE):
        drawn = _scatter(places, item2intent[chosen], labels, title)
        written = save_figure(checkpoint.parent, f"{checkpoint.stem}.items", drawn, lines)
    drawn_of = {str(names[intent]): int((item2intent[chosen] == intent).sum()) for intent in intents}
    facts = {"model": config["model"], "dataset": config["dataset"], "nmi": nmi, "nmi_shuffled": chance,
             "items": len(chosen), "intents": drawn_of,
             "interactions_per_item": float(seen[chosen].mean())}  # fmt: skip
    path = checkpoint.with_name(f"{checkpoint.stem}.items.json")
    write_json(path, facts)
    return [*written, path]


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
        short = name if len(name) < 28 else f"{name[:25]}..."
        axes.scatter(x, y, s=7, color=colour, linewidths=0, alpha=0.8, label=f"{short} ({len(x)})")
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=9)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7, markerscale=2, title="intent (items)")
    return figure


def _net(config: Any, model: Any) -> Towers | SAIRNet:
    """The net of CaFe, CaFePlus or SAIR, to be looked at.

    Raises:
        ConfigError: it is another one.
    """
    if not isinstance(model, NetRecommender) or not isinstance(model.network, (Towers, SAIRNet)):
        raise ConfigError(f"model={config['model']}: these figures are of CaFe, CaFePlus and SAIR")
    return model.network.cpu().eval()


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise missing_package(error, "benchmark") from error
    return matplotlib
