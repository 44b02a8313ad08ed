"""Where every test target stands, as a NumPy archive without pickles.

It holds `users`, [N] tokens, and for each protocol `<protocol>.above`, `<protocol>.tied`, `<protocol>.n_candidates`,
[N] int32 in the order of the users, and `<protocol>.limit`, -1 if all ranks are exact; `full.later`, [N] bool, if it is
known which targets are strictly later than the item before. So anyone can redo metrics and
tests without the model. The ids of users depend on the columns a model loads: compare by token.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_cafe.errors import DataError
from recbole_cafe.files.whole import written_whole

_COUNTS = ("above", "tied", "n_candidates")
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class RankArrays:
    """Where N targets stand.

    Attributes:
        above: [N] candidates with a higher score.
        tied: [N] other candidates with the same score.
        n_candidates: [N] candidates, the target included.
        limit: None if all ranks are exact; else `above` from `limit` on is a lower bound.
        later: [N] bool, whether the target is strictly later than the item before; None if that is not told.
    """

    above: npt.NDArray[np.integer]
    tied: npt.NDArray[np.integer]
    n_candidates: npt.NDArray[np.integer]
    limit: int | None = None
    later: npt.NDArray[np.bool_] | None = None


def save_ranks(path: str | Path, users: npt.NDArray[np.str_], ranks: Mapping[str, RankArrays]) -> None:
    """Write ranks, whole or not at all.

    Args:
        path: the file to write.
        users: [N] tokens.
        ranks: protocol -> ranks, [N] in the order of `users`.
    """
    columns: dict[str, npt.NDArray[np.generic]] = {"users": users.astype(str)}
    for protocol, of in ranks.items():
        for name, values in zip(_COUNTS, (of.above, of.tied, of.n_candidates), strict=True):
            columns[f"{protocol}.{name}"] = values.astype(np.int32)
        if of.later is not None:
            columns[f"{protocol}.later"] = of.later.astype(bool)
        columns[f"{protocol}.limit"] = np.array(-1 if of.limit is None else of.limit, dtype=np.int32)
    with written_whole(Path(path)) as file:
        np.savez_compressed(file, allow_pickle=False, **columns)


def load_ranks(path: str | Path) -> tuple[npt.NDArray[np.str_], dict[str, RankArrays]]:
    """Read what `save_ranks` wrote.

    Args:
        path: the file.

    Returns:
        [N] tokens of users, and protocol -> ranks.

    Raises:
        DataError: no such file, one that is no such archive, or one without an array that belongs to it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, npt.NDArray[Any]] = {name: file[name] for name in file.files}
    except _UNREADABLE as error:
        raise DataError(f"{path}: not a readable file of ranks ({error})") from error
    users = _array(path, arrays, "users", None)
    ranks = {}
    for protocol in dict.fromkeys(name.rpartition(".")[0] for name in arrays if name != "users"):
        above, tied, n_candidates = (_array(path, arrays, f"{protocol}.{name}", len(users)) for name in _COUNTS)
        limit = int(arrays.get(f"{protocol}.limit", -1))
        told = f"{protocol}.later" in arrays
        later = _array(path, arrays, f"{protocol}.later", len(users)) if told else None
        ranks[protocol] = RankArrays(above, tied, n_candidates, None if limit < 0 else limit, later)
    return users, ranks


def _array(path: str | Path, arrays: Mapping[str, npt.NDArray[Any]], name: str, n: int | None) -> npt.NDArray[Any]:
    if name not in arrays:
        raise DataError(f"{path}: no array {name!r}, found {', '.join(arrays)}")
    array = arrays[name]
    if array.ndim != 1 or (n is not None and len(array) != n):
        raise DataError(f"{path}: {name!r} has the shape {array.shape}, expected ({n or 'number of users'},)")
    return array
