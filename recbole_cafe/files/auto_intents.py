"""Intents made from transitions, stored: which items are of which intent, and what the intents are called."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recbole_cafe.errors import DataError
from recbole_cafe.files.whole import written_whole

Ids = npt.NDArray[np.integer]
FORMAT = 1  # of the stored file, and of how intents are made; part of its fingerprint


@dataclass(frozen=True)
class AutoIntents:
    """Intents of items that were made, not read.

    Attributes:
        of_item: [V] intent of each item id, from 1; 0 for padding and for an item without one.
        names: of the intents 1, 2, ...; all different.
        tried: number of intents -> what it was judged by; empty where the number was given.
        path: where they are stored.
    """

    of_item: Ids
    names: tuple[str, ...]
    tried: dict[int, float]
    path: Path | None = None

    @property
    def digest(self) -> str:
        """sha256 of intents and names."""
        digest = hashlib.sha256(self.of_item.astype("<i8").tobytes())
        digest.update("\n".join(self.names).encode())
        digest.update("\n".join(f"{number} {score!r}" for number, score in self.tried.items()).encode())
        return digest.hexdigest()


def fingerprint(item_tokens: npt.NDArray[np.generic], users: Ids, items: Ids, number: int | str) -> str:
    """Identify what intents are made from.

    Args:
        item_tokens: token of each item id.
        users: [P] users of the train interactions, in the order of users, then time.
        items: [P] their items.
        number: `n_auto_intents`.
    """
    digest = hashlib.sha256(f"{FORMAT}:{number}:{len(users)}\0".encode())
    digest.update("\n".join(map(str, item_tokens)).encode())
    for ids in (users, items):
        digest.update(ids.astype("<i8").tobytes())
    return digest.hexdigest()


def place(folder: Path, *, name: str, data: str) -> Path:
    """The file of intents; see :func:`stored` for the arguments."""
    return folder / f"{name}-{data[:12]}.npz"


def stored(folder: Path, *, name: str, data: str, make: Callable[[], AutoIntents]) -> AutoIntents:
    """Read the intents from `folder`, or make them with `make` and store them there, whole or not at all.

    Args:
        folder: of stored intents.
        name: of the data set.
        data: what :func:`fingerprint` gives.
        make: makes them.

    Raises:
        DataError: the stored file is damaged or does not belong to its name; delete it to make them again.
    """
    path = place(folder, name=name, data=data)
    if path.is_file():
        return _load(path, data)
    made = make()
    with written_whole(path) as file:
        np.savez_compressed(
            file, of_item=made.of_item, names=np.array(made.names, dtype=np.str_), data=np.array(data),
            numbers=np.array(list(made.tried), dtype=np.int64), scores=np.array(list(made.tried.values()), dtype="f8"),
            digest=np.array(made.digest),
        )  # fmt: skip
    getLogger().info(f"intents made and stored: {path} (sha256 {made.digest[:16]})")
    return AutoIntents(made.of_item, made.names, made.tried, path)


def _load(path: Path, data: str) -> AutoIntents:
    try:
        with np.load(path, allow_pickle=False) as file:
            tried = dict(zip(file["numbers"].tolist(), file["scores"].tolist(), strict=True))
            found = AutoIntents(file["of_item"], tuple(file["names"].tolist()), tried, path)
            of, digest = str(file["data"]), str(file["digest"])
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable file of intents ({error}); delete it to make them again") from error
    if of != data or found.digest != digest:
        raise DataError(f"{path}: does not belong to these interactions or was changed; delete it to make them again")
    return found
