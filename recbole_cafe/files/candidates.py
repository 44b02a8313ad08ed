"""Sampled candidates: 100 distinct negatives per user, drawn once from a seed, stored, shared by every model.

RecBole's own `pop100` draws with replacement and collapses duplicates, excludes only the row's target, and draws anew
at every evaluation. Here a user's negatives are drawn without replacement in proportion to raw interaction counts
(`pop`, `authors`) or uniformly (`uni`), never an item of the user's train, validation or test interactions, and the
same negatives serve validation and test (specification: the evaluation protocol in the README).
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recbole_cafe.errors import ConfigError, DataError
from recbole_cafe.files.whole import written_whole

Ids = npt.NDArray[np.integer]
FORMAT = 1  # of the stored file; part of its fingerprint
CHUNK = 4096  # users drawn at a time
AUTHORS_NOTICE = (
    "authors{n}: each negative is scored with a random intent that is not the target's, as in CaFe's released "
    "evaluation code. The intent alone then points at the target. This replicates the published level; it does NOT "
    "measure recommendation. Compare models under pop{n}, uni{n} or full."
)


@dataclass(frozen=True)
class Protocol:
    """How a model is evaluated.

    Attributes:
        name: as in `eval_mode`.
        distribution: None for full ranking, else ``pop``, ``uni`` or ``authors``.
        n_negatives: negatives per target, 0 for full ranking.
    """

    name: str
    distribution: str | None
    n_negatives: int

    @property
    def random_intents(self) -> bool:
        """Negatives get random other intents (replication of the released code, no fair comparison)."""
        return self.distribution == "authors"


def parse_protocol(name: object) -> Protocol:
    """Read the name of a protocol.

    Args:
        name: `full`, `pop100`, `uni100`, `authors100` (any positive number).

    Raises:
        ConfigError: anything else.
    """
    if name == "full":
        return Protocol("full", None, 0)
    match = re.fullmatch(r"(pop|uni|authors)([1-9][0-9]*)", str(name))
    if not match:
        raise ConfigError(f"eval_mode {name!r} is not full, popN, uniN or authorsN with N a positive number (pop100)")
    return Protocol(str(name), match[1], int(match[2]))


# A view of `full`, no `eval_mode`: its ranks of the targets that are strictly later than the item before
LATER = "full_later"


def protocol_of_view(name: str) -> Protocol:
    """The protocol that gives the ranks of a protocol or view of it.

    Args:
        name: of a protocol, or `full_later`.

    Raises:
        ConfigError: neither.
    """
    return parse_protocol("full" if name == LATER else name)


@dataclass(frozen=True)
class Candidates:
    """Negatives of every user.

    Attributes:
        negatives: [U, N] item ids, row = user id; a user with fewer than N eligible items has zeros at the end.
        digest: sha256 of the table, printed with results.
        n_short: users with fewer than N negatives.
        path: where the table is stored.
    """

    negatives: Ids
    digest: str
    n_short: int
    path: Path | None = None


def draw(users: Ids, items: Ids, *, n_users: int, n_items: int, n_negatives: int, distribution: str,
         seed: int) -> Candidates:  # fmt: skip
    """Draw the negatives of all users.

    A draw in proportion to counts is a uniform draw of an interaction; drawing on until there are N distinct,
    foreign items is sampling without replacement in proportion to counts. A user for whom this takes too long (small
    catalogues, very active users) is finished by the equivalent exponential race over the items still eligible.

    Args:
        users: [P] users of all interactions (train, validation and test), ids as in RecBole.
        items: [P] their items.
        n_users: padding included.
        n_items: padding included.
        n_negatives: N, of a user.
        distribution: ``pop`` or ``uni``.
        seed: of the draw.

    Raises:
        ValueError: an unknown distribution.
    """
    if distribution not in ("pop", "uni"):
        raise ValueError(f"candidates are drawn by pop or uni, not {distribution!r}")
    rng = np.random.default_rng(seed)
    own = np.unique(users.astype(np.int64) * n_items + items)  # sorted keys of (user, item)
    items = np.sort(items)  # the order of interactions (tie_order, file) is no part of what `fingerprint` identifies
    weight = np.bincount(items, minlength=n_items).astype(np.float64)
    if distribution == "uni":
        weight[:] = 1.0
    weight[0] = 0.0
    negatives = np.zeros((n_users, n_negatives), dtype=np.int64)
    for start in range(1, n_users, CHUNK):
        block = np.arange(start, min(start + CHUNK, n_users))
        drawn: Ids = np.zeros((len(block), 0), dtype=np.int64)
        for _ in range(6):
            shape = (len(block), n_negatives + n_negatives // 2 + 8)
            if distribution == "pop":
                fresh = items[rng.integers(0, len(items), shape)]
            else:
                fresh = rng.integers(1, n_items, shape)
            drawn = np.concatenate((drawn, fresh), axis=1)
            kept = _first_distinct_foreign(drawn, block, own, n_items, n_negatives)
            if (kept[:, -1] > 0).all():
                break
            drawn = kept
        for i in np.flatnonzero(kept[:, -1] == 0):
            kept[i] = _race(kept[i], block[i], own, weight, n_items, rng)
        negatives[block] = kept
    n_short = int((negatives[1:, -1] == 0).sum())
    return Candidates(negatives, hashlib.sha256(negatives.astype("<i8").tobytes()).hexdigest(), n_short)


def _first_distinct_foreign(drawn: Ids, block: Ids, own: Ids, n_items: int, n: int) -> Ids:
    """Keep the first n values of each row that are new in the row, not 0 and not the user's.

    Args:
        drawn: [b, m] items.
        block: [b] users.
        own: sorted keys of (user, item) of all interactions.
        n_items: padding included.
        n: values to keep.

    Returns:
        [b, n], zeros where there are fewer.
    """
    b, m = drawn.shape
    key = block[:, None] * n_items + drawn
    at = np.minimum(np.searchsorted(own, key), len(own) - 1)
    good = (own[at] != key) & (drawn > 0)
    order = np.argsort(drawn, axis=1, kind="stable")
    in_order = np.take_along_axis(drawn, order, 1)
    repeated = np.zeros((b, m), dtype=bool)
    repeated[:, 1:] = in_order[:, 1:] == in_order[:, :-1]  # stable: the first occurrence is not the repeated one
    again = np.zeros((b, m), dtype=bool)
    np.put_along_axis(again, order, repeated, 1)
    good &= ~again
    place = np.cumsum(good, axis=1) - 1
    keep = good & (place < n)
    out = np.zeros((b, n), dtype=np.int64)
    row, col = np.nonzero(keep)
    out[row, place[row, col]] = drawn[row, col]
    return out


def _race(kept: Ids, user: int, own: Ids, weight: npt.NDArray[np.float64], n_items: int,
          rng: np.random.Generator) -> Ids:  # fmt: skip
    """Fill a user's row from the items still eligible: the smallest Exp(1) / weight come first.

    Args:
        kept: [N] the row so far, zeros at the end.
        user: its user.
        own: sorted keys of (user, item) of all interactions.
        weight: [V] of each item, 0 for padding.
        n_items: V.
        rng: source of chance.
    """
    present = kept[kept > 0]
    left = weight.copy()
    lo, hi = np.searchsorted(own, (user * n_items, (user + 1) * n_items))
    left[own[lo:hi] - user * n_items] = 0.0
    left[present] = 0.0
    eligible = np.flatnonzero(left)
    time = rng.standard_exponential(len(eligible)) / left[eligible]
    out = np.zeros_like(kept)
    more = eligible[np.argsort(time, kind="stable")[: len(kept) - len(present)]]
    out[: len(present)] = present
    out[len(present) : len(present) + len(more)] = more
    return out


def fingerprint(dataset_name: str, user_tokens: npt.NDArray[np.generic],
                item_tokens: npt.NDArray[np.generic], users: Ids, items: Ids) -> str:  # fmt: skip
    """Identify the interactions the candidates belong to: same tokens, same ids, same interactions in any order.

    Args:
        dataset_name: name of the data set.
        user_tokens: token of each user id.
        item_tokens: token of each item id.
        users: [P] users of all interactions.
        items: [P] their items.
    """
    digest = hashlib.sha256(f"{FORMAT}:{dataset_name}".encode())
    for tokens in (user_tokens, item_tokens):
        digest.update("\n".join(map(str, tokens)).encode())
        digest.update(b"\0")
    key = np.sort(users.astype(np.int64) * len(item_tokens) + items)
    digest.update(key.astype("<i8").tobytes())
    return digest.hexdigest()


def place(folder: Path, *, name: str, data: str, protocol: Protocol, seed: int) -> Path:
    """The file of candidates; see :func:`stored` for the arguments."""
    drawn_by = "uni" if protocol.distribution == "uni" else "pop"
    return folder / f"{name}-{drawn_by}{protocol.n_negatives}-seed{seed}-{data[:12]}.npz"


def stored(folder: Path, *, name: str, data: str, protocol: Protocol, seed: int,
           make: Callable[[], Candidates]) -> Candidates:  # fmt: skip
    """Read the candidates from `folder`, or draw them with `make` and store them there, whole or not at all.

    Args:
        folder: of stored candidates.
        name: of the data set.
        data: what :func:`fingerprint` gives.
        protocol: one that samples.
        seed: of the draw.
        make: draws the candidates.

    Raises:
        DataError: the stored file is damaged or does not belong to its name; delete it to draw again.
    """
    path = place(folder, name=name, data=data, protocol=protocol, seed=seed)
    if path.is_file():
        return _load(path, data)
    drawn = make()
    with written_whole(path) as file:
        np.savez_compressed(file, negatives=drawn.negatives, data=np.array(data), digest=np.array(drawn.digest))
    getLogger().info(f"candidates drawn and stored: {path} (sha256 {drawn.digest[:16]})")
    return Candidates(drawn.negatives, drawn.digest, drawn.n_short, path)


def _load(path: Path, data: str) -> Candidates:
    try:
        with np.load(path, allow_pickle=False) as file:
            negatives, of, digest = file["negatives"], str(file["data"]), str(file["digest"])
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable candidates file ({error}); delete it to draw again") from error
    actual = hashlib.sha256(negatives.astype("<i8").tobytes()).hexdigest()
    if of != data or actual != digest:
        raise DataError(f"{path}: does not belong to these interactions or was changed; delete it to draw again")
    return Candidates(negatives, digest, int((negatives[1:, -1] == 0).sum()), path)


def other_intents(target_intent: Ids, *, n_intents: int, n_negatives: int, seed: int) -> Ids:
    """Draw random intents for the negatives, distinct and different from the target's: what CaFe's released code does.

    Args:
        target_intent: [B] (an item without intent, id C, excludes none).
        n_intents: C, padding included.
        n_negatives: N.
        seed: of the draw.

    Returns:
        [B, N] intents in 1..C-1.

    Raises:
        DataError: fewer than N + 1 intents.
    """
    if n_intents - 1 < n_negatives + 1:
        raise DataError(
            f"authors{n_negatives} gives each negative another intent, all different: it needs at least "
            f"{n_negatives + 1} intents, there are {n_intents - 1}"
        )
    rng = np.random.default_rng(seed)
    out = np.empty((len(target_intent), n_negatives), dtype=np.int64)
    step = max(1, 2**24 // n_intents)  # a [step, C] table of random keys at a time
    for start in range(0, len(target_intent), step):
        part = target_intent[start : start + step]
        key = rng.random((len(part), n_intents + 1))
        key[:, 0] = key[:, n_intents] = np.inf
        key[np.arange(len(part)), part] = np.inf
        chosen = np.argpartition(key, n_negatives, axis=1)[:, :n_negatives]
        by_key = np.argsort(np.take_along_axis(key, chosen, 1), axis=1)  # argpartition leaves the order open
        out[start : start + len(part)] = np.take_along_axis(chosen, by_key, 1)
    return out
