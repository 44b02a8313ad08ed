"""Interactions of a user at one time: how many targets they decide, and whether the file has an order of its own.

Inside a tie the file's order is all that a model sees. If the items of all ties stand in one order (of product numbers,
say), what comes next can be read from the items alone, and nobody's behaviour has to be known for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_cafe.files.times import are_positions, later_than_before

Ids = npt.NDArray[np.integer]
SEED = 0  # of the shuffled ties that the file's are compared with


def count_ties(user: Ids, item: Ids, time: npt.NDArray[np.floating]) -> dict[str, Any]:
    """Count the targets that ties decide, and what contradicts one order of the items inside ties.

    Args:
        user: [P] of all interactions, in the order of the file.
        item: [P] their items, numbers from 0.
        time: [P] their stamps.

    Returns:
        `tied_test`, `tied_valid`: share of the last targets of users, and of the ones before, that have the time of the
        item before them. `tied_pairs`: steps from an item to another at the same time. `tied_repeated`: pairs of items
        that make two such steps or more; `tied_reversed`: those of them in both orders. `tied_cyclic`: steps that are
        part of a cycle, so that no order of all items has them all; `..._shuffled`: the same with ties in random order.
        All None where the stamps are positions.
    """
    order = np.lexsort((time, user))  # stable: ties stay in the order of the file
    user, item, time = user[order], item[order], time[order]
    names = ("tied_test", "tied_valid", "tied_pairs", "tied_repeated", "tied_reversed", "tied_reversed_shuffled",
             "tied_cyclic", "tied_cyclic_shuffled")  # fmt: skip
    if are_positions(user, time):
        return dict.fromkeys(names)
    later = later_than_before(user, time)
    is_first = np.r_[True, user[1:] != user[:-1]]
    start = np.flatnonzero(is_first)
    end = np.append(start[1:], len(user))
    size = end - start
    numbers: dict[str, Any] = {}
    for name, back in (
        ("tied_test", 1),
        ("tied_valid", 2),
    ):  # as leave-one-out takes them, each after one item at least
        targets = (end - back)[size > back]
        numbers[name] = float((~later[targets]).mean()) if len(targets) else None
    tied = ~(later | is_first)
    numbers["tied_pairs"], numbers["tied_repeated"], numbers["tied_reversed"], numbers["tied_cyclic"] = _of_steps(
        item, tied
    )
    group = np.cumsum(~tied)
    shuffled = item[np.lexsort((np.random.default_rng(SEED).random(len(item)), group))]
    _, _, numbers["tied_reversed_shuffled"], numbers["tied_cyclic_shuffled"] = _of_steps(shuffled, tied)
    return {name: numbers[name] for name in names}


def _of_steps(item: Ids, tied: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Steps inside ties, pairs of items with two or more, those in both orders, and steps inside cycles."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    at = np.flatnonzero(tied)
    before, after = item[at - 1].astype(np.int64), item[at].astype(np.int64)
    differ = before != after
    before, after = before[differ], after[differ]
    if not len(before):
        return 0, 0, 0, 0
    n = int(item.max()) + 1
    pair = np.minimum(before, after) * n + np.maximum(before, after)
    _, of_pair, times = np.unique(pair, return_inverse=True, return_counts=True)
    upward = np.bincount(of_pair, weights=before < after)
    reversed_pairs = int(((upward > 0) & (upward < times)).sum())
    graph = coo_matrix((np.ones(len(before), dtype=np.int8), (before, after)), shape=(n, n))
    _, component = connected_components(graph.tocsr(), directed=True, connection="strong")
    cyclic = int((component[before] == component[after]).sum())
    return len(before), int((times > 1).sum()), reversed_pairs, cyclic


def sentence(numbers: dict[str, Any]) -> str:
    """What ties do to a benchmark on these data, in one sentence.

    Args:
        numbers: of :func:`count_ties`.
    """
    if numbers["tied_test"] is None:
        return (
            "the order of the interactions cannot be checked: the stamps are positions in an order, or tell of no "
            "target, so that nobody can say which results the file's order decides"
        )
    share, pairs = numbers["tied_test"], numbers["tied_pairs"]
    if share == 0:
        return "no test target has the time of the item before it: the order of ties decides no result"
    start = f"{share:.1%} of the test targets have the time of the item before them, and inside a time "
    advice = "report later targets (full_later) and shuffled ties (tie_order: random) beside the file's order"
    if numbers["tied_cyclic"] == 0 and numbers["tied_cyclic_shuffled"] > 0:
        return (
            f"{start}the file has the items in one global order without exception ({pairs:,} pairs, none reversed): "
            f"a model can read the next item from that order, and results in the file's order are inflated; {advice}"
        )
    if numbers["tied_reversed"] < numbers["tied_reversed_shuffled"] / 2:
        return (
            f"{start}the file tends to an order of the items ({numbers['tied_reversed']:,} of "
            f"{numbers['tied_repeated']:,} pairs that come again are reversed, {numbers['tied_reversed_shuffled']:,} "
            f"if shuffled), which a model can read; {advice}"
        )
    if numbers["tied_cyclic_shuffled"] == 0:
        return f"{start}there are too few pairs ({pairs:,}) to tell whether the file has an order; {advice}"
    return (
        f"{start}the file shows no order of the items ({numbers['tied_reversed']:,} of {numbers['tied_repeated']:,} "
        f"pairs that come again are reversed): such targets ask what was taken together, not what comes next; {advice}"
    )
