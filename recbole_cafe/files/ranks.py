"""Where every test target stands, as a NumPy archive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recbole_cafe.files.whole import written_whole
from recbole_cafe.ranking.ranks import Ranks


def save_ranks(path: str | Path, dataset: Any, ranks: Mapping[str, Ranks]) -> None:
    """Write where every test target stands, so that anyone can redo metrics and tests without the model.

    A NumPy archive without pickles: `users`, [N] tokens in the order of the data set's user ids, and for each protocol
    `<protocol>.above`, `<protocol>.tied`, `<protocol>.n_candidates`, [N] as in recbole_cafe.ranking.ranks.Ranks, and
    `<protocol>.limit`, -1 if all ranks are exact. User ids depend on the columns a model loads: compare by token.

    Args:
        dataset: the test split, one row per user. ranks: protocol -> ranks of its rows.
    """
    field = dataset.uid_field
    users = dataset.inter_feat[field].numpy()
    order = np.argsort(users, kind="stable")
    columns = {"users": np.asarray(dataset.field2id_token[field])[users[order]].astype(str)}
    for protocol, of in ranks.items():
        for name in ("above", "tied", "n_candidates"):
            columns[f"{protocol}.{name}"] = getattr(of, name).numpy()[order].astype(np.int32)
        columns[f"{protocol}.limit"] = np.array(-1 if of.limit is None else of.limit, dtype=np.int32)
    with written_whole(Path(path)) as file:
        np.savez_compressed(file, **columns)
