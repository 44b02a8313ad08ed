"""Ranks in a file: what is saved loads back, and a file that is none is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recbole_cafe.errors import DataError
from recbole_cafe.files.ranks import RankArrays, load_ranks, save_ranks

USERS = np.array(["ann", "bob", "日本"])
RANKS = {
    "full": RankArrays(np.array([0, 5, 9]), np.array([1, 0, 0]), np.array([10, 10, 10]), limit=8),
    "pop100": RankArrays(np.array([2, 0, 1]), np.array([0, 0, 3]), np.array([101, 101, 90])),
}


def test_what_is_saved_loads_back(tmp_path: Path) -> None:
    save_ranks(tmp_path / "new" / "ranks.npz", USERS, RANKS)
    users, ranks = load_ranks(tmp_path / "new" / "ranks.npz")
    assert users.tolist() == USERS.tolist() and list(ranks) == list(RANKS)
    for name, expected in RANKS.items():
        assert ranks[name].limit == expected.limit
        for key in ("above", "tied", "n_candidates"):
            np.testing.assert_array_equal(getattr(ranks[name], key), getattr(expected, key))


def test_the_arrays_have_the_names_and_types_of_the_format(tmp_path: Path) -> None:
    save_ranks(tmp_path / "ranks.npz", USERS.astype(object), RANKS)
    with np.load(tmp_path / "ranks.npz", allow_pickle=False) as file:
        assert file["users"].dtype.kind == "U"
        parts = ("above", "tied", "n_candidates", "limit")
        assert file.files == ["users", *(f"{name}.{part}" for name in RANKS for part in parts)]
        assert {file[name].dtype for name in file.files if name != "users"} == {np.dtype(np.int32)}
        assert (int(file["full.limit"]), int(file["pop100.limit"])) == (8, -1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"full.above": np.zeros(3)}, r"r\.npz: no array 'users', found full\.above"),
        ({"users": USERS, "full.above": np.zeros(3)}, r"r\.npz: no array 'full\.tied'"),
        ({"users": USERS, "full.above": np.zeros(2)}, r"'full\.above' has the shape \(2,\), expected \(3,\)"),
    ],
)
def test_an_array_that_is_missing_or_too_short_is_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_ranks(tmp_path / "r.npz")


@pytest.mark.parametrize("content", [None, b"", b"no archive"])
def test_a_file_that_is_no_archive_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "r.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"r\.npz: not a readable file of ranks"):
        load_ranks(tmp_path / "r.npz")
