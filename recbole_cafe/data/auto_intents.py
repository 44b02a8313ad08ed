"""Intents without a column: items that follow each other, grouped (``INTENT_FIELD: auto``).

Items are the nodes of a graph, and what weighs an edge is how often two items stood near each other in the train
split: c(u, v) of recbole_cafe.model.intent_backoff with its window, in both directions. The graph is cut by regularised
spectral clustering (Chaudhuri, Chung, Tsiatas, COLT 2012; Qin, Rohe, NIPS 2013): with the degrees D and their mean tau,
the leading singular vectors of

    (D + tau)^(-1/2) C (D + tau)^(-1/2),

a row an item, scaled by the singular values and then to length 1, clustered by k-means. tau keeps small, loosely tied
groups from taking the leading vectors for themselves. An item without a neighbour is in no group: nothing tells what it
goes with.

*How many* (`n_auto_intents: auto`) is judged inside the train split, so that validation and test stay unseen and a
`final` run chooses as others do: each user's last train interaction is held out, intents are made from the rest, and
the number is taken whose IntentBackoff, (1) and (2) of its module, gives the held-out items the greatest mean
log-probability.

P train interactions, V items, B targets, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType
from scipy import sparse

from recbole_cafe.config.config import AUTO
from recbole_cafe.data.reader import text_format
from recbole_cafe.data.transitions import transitions
from recbole_cafe.errors import DataError
from recbole_cafe.files.atomic import read_header
from recbole_cafe.files.auto_intents import AutoIntents, Ids, fingerprint, place, stored
from recbole_cafe.files.places import check_folder

WINDOW, DECAY = 10, 0.8  # of a pair of items, as IntentBackoff counts them
DIMENSIONS = 64
ROUNDS = 50  # of k-means, at most
MANY = 50_000  # items beyond which k-means reads them in batches
SHARES = (0.125, 0.25, 0.5, 1.0, 2.0)  # of sqrt(items): the numbers of intents that are tried
MOST_TARGETS = 20_000  # held out to judge them
NAMED_BY = 3  # items
SEED = 0


def make_intents(users: Ids, items: Ids, tokens: Any, number: int | str) -> AutoIntents:
    """Make intents from the train interactions.

    Args:
        users: [P] in the order of users, then time.
        items: [P].
        tokens: [V] token of each item id.
        number: of intents, or ``auto``.

    Raises:
        DataError: fewer items with a neighbour than intents.
    """
    from threadpoolctl import threadpool_limits

    # ids are numbered by the whole data set, validation and test too: in the order of tokens they say nothing
    by_token = np.r_[0, 1 + np.argsort(np.asarray(tokens[1:]).astype(str), kind="stable")]
    place = np.empty(len(tokens), dtype=np.int64)
    place[by_token] = np.arange(len(tokens))
    items, tokens = place[items], np.asarray(tokens)[by_token]
    with threadpool_limits(limits=1):  # sums of several threads differ in their last bits from run to run
        tried = _judged(users, items, len(tokens)) if number == AUTO else {}
        chosen = max(tried, key=lambda n: tried[n]) if tried else int(number)
        vectors = ItemVectors.of(users, items, len(tokens))
        if len(vectors.item) < chosen:
            raise DataError(
                f"INTENT_FIELD={AUTO}: {chosen} intents are to be made (n_auto_intents={number}) of "
                f"{len(vectors.item)} items that stand beside another one in the train split"
            )
        cluster, centres = vectors.clusters(chosen)
    order = _by_size(cluster, vectors.item)
    renumbered = np.empty(len(centres), dtype=np.int64)
    renumbered[order] = np.arange(len(order))
    cluster, centres = renumbered[cluster], centres[order]
    of_item = np.zeros(len(tokens), dtype=np.int64)
    of_item[vectors.item] = cluster + 1
    names = _names(vectors, cluster, centres, np.bincount(items, minlength=len(tokens)), tokens)
    return AutoIntents(of_item[place], names, tried)


@dataclass(frozen=True)
class ItemVectors:
    """Where items stand by what stands beside them.

    Attributes:
        item: [N] ids of the items that have a neighbour.
        vector: [N, D] of length 1.
        count: [V, V] c(u, v) in one direction.
    """

    item: Ids
    vector: np.ndarray
    count: sparse.csr_matrix

    @classmethod
    def of(cls, users: Ids, items: Ids, n: int) -> ItemVectors:
        """See the module's docstring. n: V."""
        from sklearn.utils.extmath import randomized_svd

        count = transitions(users, items, n=n, window=WINDOW, window_decay=DECAY, backward=0.0)
        count.data = count.data.round(9)  # or the order of the users would be in the last bits
        beside = (count + count.T).tocsr()
        beside.setdiag(0)
        beside.eliminate_zeros()
        degree = np.asarray(beside.sum(axis=1)).ravel()
        item = np.flatnonzero(degree)
        if not len(item):
            return cls(item, np.zeros((0, 1)), count)
        scale = sparse.diags((degree[item] + degree[item].mean()) ** -0.5)
        left, strength, _ = randomized_svd(
            scale @ beside[item][:, item] @ scale, min(DIMENSIONS, len(item)), n_iter=5, random_state=SEED
        )
        vector = left * strength
        return cls(item, vector / np.linalg.norm(vector, axis=1, keepdims=True).clip(min=1e-12), count)

    def clusters(self, number: int) -> tuple[Ids, np.ndarray]:
        """K-means.

        Args:
            number: of clusters.

        Returns:
            [N] cluster of each item, from 0; [K, D] the means of their items. K is smaller than `number` only if there
            are fewer different vectors.
        """
        from sklearn.cluster import KMeans, MiniBatchKMeans

        shared = {"n_clusters": number, "n_init": 1, "max_iter": ROUNDS, "random_state": SEED}
        k_means = KMeans(**shared) if len(self.item) <= MANY else MiniBatchKMeans(batch_size=10 * 1024, **shared)
        cluster = np.unique(k_means.fit_predict(self.vector), return_inverse=True)[1]
        member = sparse.csr_matrix((np.ones(len(cluster)), (cluster, np.arange(len(cluster)))))  # [K, N]
        return cluster, (member @ self.vector) / np.bincount(cluster)[:, None]


def _by_size(cluster: Ids, item: Ids) -> Ids:
    """Clusters from the largest to the smallest, equal ones by their first item. Returns [K]."""
    size = np.bincount(cluster)
    first = np.full(len(size), item.max())
    np.minimum.at(first, cluster, item)
    return np.lexsort((first, -size))


def _names(vectors: ItemVectors, cluster: Ids, centres: np.ndarray, seen: Ids, tokens: Any) -> tuple[str, ...]:
    """The tokens of a cluster's most typical items: near its centre and often taken.

    Args:
        vectors: of the items.
        cluster: [N].
        centres: [K, D].
        seen: [V] interactions of each item.
        tokens: [V].
    """
    near = (vectors.vector * centres[cluster]).sum(1).clip(min=0) / np.linalg.norm(centres, axis=1)[cluster]
    order = np.lexsort((vectors.item, -near * np.sqrt(seen[vectors.item]), cluster))
    members = np.split(vectors.item[order], np.cumsum(np.bincount(cluster))[:-1])
    names: dict[str, None] = {}
    for number, of_it in enumerate(members, 1):
        name = "+".join(str(tokens[i]) for i in of_it[:NAMED_BY])
        while name in names:  # tokens that hold a + themselves
            name += f"#{number}"
        names[name] = None
    return tuple(names)


# How many -------------------------------------------------------------------------------------------------------------


def _judged(users: Ids, items: Ids, n: int) -> dict[int, float]:
    """Mean log-probability of the held-out items, by number of intents."""
    last = np.r_[users[1:] != users[:-1], True]
    target = np.flatnonzero(last & np.r_[False, users[1:] == users[:-1]])  # with an interaction before
    if not len(target):
        raise DataError(f"INTENT_FIELD={AUTO}: no user has two interactions in the train split")
    kept_users, kept = users[~last], items[~last]
    vectors = ItemVectors.of(kept_users, kept, n)
    numbers = sorted({max(2, round(share * len(vectors.item) ** 0.5)) for share in SHARES})
    numbers = [number for number in numbers if number <= len(vectors.item)]
    if len(numbers) < 2:
        raise DataError(
            f"INTENT_FIELD={AUTO}: {len(vectors.item)} items stand beside another one, too few to choose how many "
            "intents to make; set n_auto_intents"
        )
    if len(target) > MOST_TARGETS:
        target = np.sort(np.random.default_rng(SEED).choice(target, MOST_TARGETS, replace=False))
    at = target[:, None] - np.arange(1, LOOKUP.length + 1)  # [B, L] newest first
    real = (at >= 0) & (users[at.clip(min=0)] == users[target][:, None])
    history = np.where(real, items[at.clip(min=0)], 0)
    seen = np.bincount(kept, minlength=n)
    scores = {}
    for number in numbers:
        of_item = np.zeros(n, dtype=np.int64)
        of_item[vectors.item] = vectors.clusters(number)[0] + 1
        judged = of_item[items[target]] > 0
        scores[number] = _log_probability(vectors.count, of_item, seen, history[judged], items[target][judged])
    return scores


@dataclass(frozen=True)
class _Lookup:
    """Defaults of props/model/IntentBackoff.yaml."""

    length: int
    decay: float
    discount: float
    prior: float


LOOKUP, INTENT_LOOKUP = _Lookup(20, 0.5, 0.8, 10.0), _Lookup(20, 0.3, 0.5, 3.0)
BACKWARD = 0.3
ALPHA, KAPPA = 0.3, 1.0


def _log_probability(count: sparse.csr_matrix, of_item: Ids, seen: Ids, history: Ids, target: Ids) -> float:
    """Mean log P(v | h) of IntentBackoff, (1) and (2).

    Args:
        count: [V, V] c(u, v) in one direction.
        of_item: [V] intent of each item, 0 for none.
        seen: [V] interactions of each item.
        history: [B, L] newest first, 0 for none.
        target: [B], of items with an intent.
    """
    n_intents = int(of_item.max()) + 1
    member = sparse.csr_matrix((np.ones(len(of_item)), (np.arange(len(of_item)), of_item)))  # [V, C]
    between = (member.T @ count @ member).tocsr()
    intent_seen = np.bincount(of_item, weights=seen, minlength=n_intents)[of_item[target]] + 1
    weight = (seen + KAPPA) ** ALPHA
    inside = weight / np.bincount(of_item, weights=weight, minlength=n_intents)[of_item]
    of_intent = _share(
        between, of_item[history], of_item[target], INTENT_LOOKUP, intent_seen / (seen.sum() + n_intents - 1)
    )
    both = (count + BACKWARD * count.T).tocsr()
    return float(np.log(_share(both, history, target, LOOKUP, of_intent * inside[target])).mean())


def _share(count: sparse.csr_matrix, source: Ids, target: Ids, lookup: _Lookup, coarser: np.ndarray) -> np.ndarray:
    """(1) and (2): discounted evidence for the target, and what is left given to the coarser level.

    Args:
        count: [n, n].
        source: [B, L] newest first, 0 for none.
        target: [B].
        lookup: how the history is looked up.
        coarser: [B] probability of the target by the coarser level.

    Returns:
        [B].
    """
    weight = lookup.decay ** np.arange(source.shape[1]) * (source > 0)
    total = np.asarray(count.sum(axis=1)).ravel()
    taken_off = count.copy()
    taken_off.data = lookup.discount * taken_off.data.clip(max=1.0)
    left = (count - taken_off).tocsr()
    told = np.asarray(left[source.ravel(), np.repeat(target, source.shape[1])]).reshape(source.shape)
    evidence = (weight * told).sum(1)
    rest = lookup.prior + (weight * np.asarray(taken_off.sum(axis=1)).ravel()[source]).sum(1)
    return (evidence + rest * coarser) / (lookup.prior + (weight * total[source]).sum(1))


# Into a data set ------------------------------------------------------------------------------------------------------


def intents_of(dataset: Any, train: Any) -> AutoIntents:
    """The intents of a data set, from the folder `intents_dir` or made and stored there.

    Args:
        dataset: a sequential data set of ours.
        train: its train part.

    Raises:
        ConfigError: the folder cannot be written.
        DataError: a column has the name that the made one gets, or see :func:`make_intents` and
            :func:`recbole_cafe.files.auto_intents.stored`.
    """
    config, tokens = dataset.config, dataset.field2id_token[dataset.iid_field]
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    if AUTO in dataset.field2type or (path.is_file() and AUTO in read_header(path, text_format(config))):
        raise DataError(
            f"{dataset.dataset_name} has a column named {AUTO!r}, and INTENT_FIELD={AUTO} makes one of that name: "
            f"rename the column"
        )
    users, items = (ids.numpy() for ids in train.user_items())
    number = config["n_auto_intents"]
    data = fingerprint(tokens, users, items, number)
    folder = Path(config["intents_dir"] or Path(config["checkpoint_dir"]) / "intents")
    if not place(folder, name=dataset.dataset_name, data=data).is_file():
        check_folder("intents_dir", folder)
    return stored(folder, name=dataset.dataset_name, data=data, make=lambda: make_intents(users, items, tokens, number))


def put_into(datasets: list[Any], made: AutoIntents) -> None:
    """Give data sets the column of the made intents, as if it had been read from the .item file.

    Args:
        datasets: a built data set and its parts, which share their features and their tokens.
        made: the intents.
    """
    whole = datasets[0]
    column = torch.from_numpy(made.of_item)
    names = np.array(["[PAD]", *made.names], dtype=object)
    if whole.item_feat is None:
        feat = Interaction({whole.iid_field: torch.arange(whole.item_num), AUTO: column})
    else:
        feat = Interaction({**whole.item_feat.interaction, AUTO: column})
    for dataset in datasets:
        dataset.set_field_property(AUTO, FeatureType.TOKEN, FeatureSource.ITEM, 1)
        dataset.field2id_token[AUTO] = names
        dataset.field2token_id[AUTO] = {token: i for i, token in enumerate(names.tolist())}
        dataset.item_feat = feat


def agreement(dataset: Any) -> dict[str, float]:
    """NMI of the made intents with each token column of the .item file that groups items; of several tokens the first.

    A column that has a value of its own for more than half of the items, such as a title, groups nothing.

    Args:
        dataset: with made intents.
    """
    from sklearn.metrics import normalized_mutual_info_score

    found, made = {}, dataset.item_feat[AUTO].numpy()
    for field in dataset.item_feat.interaction:
        if field in (AUTO, dataset.iid_field) or dataset.field2type[field] not in (
            FeatureType.TOKEN,
            FeatureType.TOKEN_SEQ,
        ):
            continue
        given = dataset.item_feat[field].numpy()
        given = given if given.ndim == 1 else given[:, 0]
        both = (made > 0) & (given > 0)
        if 2 <= len(np.unique(given[both])) <= both.sum() / 2:
            found[field] = float(normalized_mutual_info_score(given[both], made[both]))
    return found


def told(dataset: Any) -> str:
    """What was made, in a sentence.

    Args:
        dataset: with made intents.
    """
    made = dataset.auto_intents
    n = len(made.of_item) - 1
    without = n - int((made.of_item > 0).sum())
    text = f"INTENT_FIELD={AUTO}: {len(made.names)} intents of {n - without} items; {without} items stand beside none"
    if made.tried:
        tried = ", ".join(f"{number}: {score:.4f}" for number, score in made.tried.items())
        text += f"; mean log-probability of each user's last train item by number of intents {tried}"
    if same := agreement(dataset):
        text += "; NMI with " + ", ".join(f"{field} {value:.3f}" for field, value in same.items())
    return text
