"""Simulated data in the shape of the paper's: few interactions an item, intents that tell what comes next.

They are made, not collected: numbers measured on them say whether the code works, not how good a model is on
real data. The presence of `simulation.json` in a data set's folder is how the package knows that the data set
is simulated.

How an event comes about:

1. each user has a length, a few favourite intents and a taste (one number);
2. the intent of each event comes from a sparse table intent -> next intent, the user's favourites, the intent
   before, or the popularity of all intents (Zipf), in the proportions of `Structure`;
3. inside an intent, item popularity is Zipf too, and a user's taste leans only weakly towards items of a like
   style. So an intent is predictable and well covered by data, while the next item alone, seen about 2.8
   times, is not.

The numbers of users, items and interactions are exact by construction: every item occurs.

Bit for bit the same for a seed everywhere: all randomness is the raw 64-bit output of PCG64, which NumPy
keeps stable, turned into integers by integer arithmetic. No floating point, no NumPy distribution, no exp,
log or power is involved.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from recbole_cafe.errors import ConfigError
from recbole_cafe.files.atomic import INTENT, ITEM, TIME, USER, AtomicFileError, checksum
from recbole_cafe.files.atomic_writer import Stream, Written, check_target, write_dataset
from recbole_cafe.files.simulated import MANIFEST as MANIFEST
from recbole_cafe.files.simulated import is_simulated as is_simulated
from recbole_cafe.files.whole import restore

GENERATOR = 1  # raise it when the same parameters give other data
MIN_LENGTH = 5
SEED = 2022

# The -paper shapes are those of the data sets in arXiv:2204.01839; `amazon` has its interactions per user
# (40.9) and per item (2.81), and is small enough to try everything on a laptop.
PRESETS: dict[str, dict[str, int]] = {
    "amazon": {"n_users": 2_000, "n_items": 29_100, "n_intents": 160, "n_interactions": 81_800},
    "amazon-paper": {
        "n_users": 131_248,
        "n_items": 1_910_226,
        "n_intents": 1_392,
        "n_interactions": 5_370_171,
    },
    "tmall-paper": {
        "n_users": 131_086,
        "n_items": 1_788_758,
        "n_intents": 9_999,
        "n_interactions": 14_460_516,
    },
}

_HOUR = 3600
_YEAR = 365 * 24  # hours
_EPOCH = 1_262_304_000  # 2010-01-01 00:00 UTC, a whole hour
_ZIPF = 10**9  # integer Zipf weights: _ZIPF // (rank + offset)
_BITS = 20  # resolution of taste and style
_ROUNDS = 8  # of swaps that avoid repeats


@dataclass(frozen=True)
class Structure:
    """How predictable the simulated users are.

    `transition`, `favourite` and `stay` are the chances in percent that the next intent follows the table, is
    one of the user's favourites, or stays; the rest is drawn by popularity. `taste` is the weight of taste
    against chance, in percent, when items of an intent are dealt to its events.
    """

    transition: int = 50
    favourite: int = 30
    stay: int = 10
    successors: int = 3
    favourites: int = 3
    taste: int = 40
    intent_offset: int = 8
    item_offset: int = 2

    def __post_init__(self) -> None:
        """Check each number.

        Raises:
            ConfigError: one that cannot be.
        """
        if min(self.transition, self.favourite, self.stay) < 0 or self.transition + self.favourite + self.stay > 100:
            raise ConfigError(
                f"transition={self.transition}, favourite={self.favourite}, stay={self.stay}: "
                "expected three percentages of at most 100 together"
            )
        if not 0 <= self.taste <= 100:
            raise ConfigError(f"taste={self.taste}: expected a percentage")
        for name in ("successors", "favourites", "intent_offset", "item_offset"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least 1")


@dataclass(frozen=True)
class Tables:
    """A simulated data set.

    Attributes:
        interactions: sorted by user, then time; ids are dictionary columns.
        items: one row an item, likewise.
        parameters: what made it.
    """

    interactions: pa.Table
    items: pa.Table
    parameters: dict[str, Any]


# ------------------------------------------------------------------------------------------------- simulation
def simulate(
    n_users: int,
    n_items: int,
    n_intents: int,
    n_interactions: int,
    *,
    seed: int = SEED,
    structure: Structure | None = None,
    show_progress: bool = False,
) -> Tables:
    """Simulate a data set of exactly these numbers of users, items and interactions.

    Intents that no event falls on are left out; that happens only where there are few interactions per
    intent.

    Args:
        n_users: at least 1.
        n_items: at least 1 an intent.
        n_intents: at least 1.
        n_interactions: at least 5 a user and 1 an item.
        seed: any non-negative integer.
        structure: how predictable users are.
        show_progress: a progress bar on stderr.

    Returns:
        Columns `user_id:token`, `item_id:token`, `timestamp:float` (whole hours, in seconds since 1970,
        strictly increasing in a user) and `item_id:token`, `intent:token`.

    Raises:
        ConfigError: a shape that cannot be.
    """
    _check_shape(n_users, n_items, n_intents, n_interactions, seed)
    structure = structure or Structure()
    random = _Random(seed)
    lengths = _lengths(random, n_users, n_interactions)
    intents = _walk(random, lengths, n_intents, structure, show_progress)
    items, intent_of = _deal(random, lengths, intents, n_items, n_intents, structure.taste, structure.item_offset)
    times = _times(random, lengths)
    # A number must not tell how popular an item is or which intent it has, so both are shuffled.
    item_number, intent_number = random.permutation(n_items), random.permutation(n_intents)
    intent_of_number = np.empty(n_items, dtype=np.int32)
    intent_of_number[item_number] = intent_number[intent_of]
    item_names = _names("i", n_items)
    return Tables(
        interactions=pa.table(
            {
                USER: _categorical(np.repeat(np.arange(n_users, dtype=np.int32), lengths), _names("u", n_users)),
                ITEM: _categorical(item_number[items], item_names),
                TIME: times,
            }
        ),
        items=pa.table(
            {
                ITEM: _categorical(np.arange(n_items, dtype=np.int32), item_names),
                INTENT: _categorical(intent_of_number, _names("c", n_intents)),
            }
        ),
        parameters={
            "n_users": n_users,
            "n_items": n_items,
            "n_intents": n_intents,
            "n_interactions": n_interactions,
            "seed": seed,
            **asdict(structure),
        },
    )


class _Random:
    """Integers from the raw output of PCG64, by remainder: bias below 2**-30 for bounds below 2**34."""

    def __init__(self, seed: int) -> None:
        self._source = np.random.PCG64(seed)

    def below(self, bound: int | np.ndarray, size: int) -> np.ndarray:
        """`size` integers in [0, bound), one bound for all or one each: int64 [size]."""
        return (self._source.random_raw(size) % np.asarray(bound).astype(np.uint64)).astype(np.int64)

    def weighted(self, cumulative: np.ndarray, size: int) -> np.ndarray:
        """`size` indices, each in proportion to an integer weight given by the weights' cumulative sum."""
        return np.searchsorted(cumulative, self.below(int(cumulative[-1]), size), side="right")

    def permutation(self, size: int) -> np.ndarray:
        order = np.argsort(self._source.random_raw(size), kind="stable")
        return order.astype(np.int32)


def _check_shape(n_users: int, n_items: int, n_intents: int, n_interactions: int, seed: int) -> None:
    for name, value in (("n_users", n_users), ("n_items", n_items), ("n_intents", n_intents)):
        if value < 1:
            raise ConfigError(f"{name}={value}: expected at least 1")
    if n_intents > n_items:
        raise ConfigError(f"n_intents={n_intents}: expected at most n_items={n_items}, an item has one intent")
    if n_interactions < MIN_LENGTH * n_users:
        raise ConfigError(
            f"n_interactions={n_interactions}: expected at least {MIN_LENGTH * n_users}, {MIN_LENGTH} a user"
        )
    if n_interactions < n_items:
        raise ConfigError(f"n_interactions={n_interactions}: expected at least n_items={n_items}, every item occurs")
    if seed < 0:
        raise ConfigError(f"seed={seed}: expected a non-negative integer")


def _apportion(total: np.ndarray, weights: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Split each total exactly, in proportion to integer weights, by largest remainder.

    Args:
        total: what each group has to give, [G]; total * weight must stay below 2**63.
        weights: group after group, [sum of sizes]; a weight of 0 gets nothing.
        sizes: members of each group, at least 1 each, [G].
    """
    total, weights, sizes = (np.asarray(values, dtype=np.int64) for values in (total, weights, sizes))
    first = np.cumsum(sizes) - sizes
    group = np.repeat(np.arange(len(sizes)), sizes)
    whole = np.maximum(np.add.reduceat(weights, first), 1)[group]
    shares, remainder = np.divmod(total[group] * weights, whole)
    left = total - np.add.reduceat(shares, first)
    best_first = np.lexsort((-remainder, group))
    shares[best_first] += np.arange(len(weights)) - first[group] < left[group]
    return shares


def _lengths(random: _Random, n_users: int, n_interactions: int) -> np.ndarray:
    """Interactions per user, int64 [n_users]: at least 5, a long tail up to about five times the mean."""
    draw = random.below(2**20, n_users)
    weights = 1 + 2**40 // (draw + 2**17) - 2**40 // (2**20 + 2**17)
    return MIN_LENGTH + _apportion(np.array([n_interactions - MIN_LENGTH * n_users]), weights, np.array([n_users]))


def _walk(
    random: _Random, lengths: np.ndarray, n_intents: int, structure: Structure, show_progress: bool
) -> np.ndarray:
    """The intent of each event, users one after another, int32 [sum of lengths]; all users step by step."""
    n_users = len(lengths)
    popularity = np.cumsum(_ZIPF // (np.arange(n_intents, dtype=np.int64) + structure.intent_offset))
    shape = (n_intents, structure.successors)
    successors = random.weighted(popularity, n_intents * structure.successors).reshape(shape)
    favourites = random.weighted(popularity, n_users * structure.favourites).reshape(n_users, structure.favourites)
    next_rank, favourite_rank = _ladder(structure.successors), _ladder(structure.favourites)

    order = np.argsort(-lengths, kind="stable")  # longest first, so that the users still active are always a prefix
    start = (np.cumsum(lengths) - lengths)[order]
    favourites = favourites[order]
    active = n_users - np.searchsorted(np.sort(lengths), np.arange(lengths.max()), side="right")
    current = favourites[:, 0]
    result = np.empty(int(lengths.sum()), dtype=np.int32)
    likes = structure.transition + structure.favourite
    stays = likes + structure.stay
    for step in tqdm(range(len(active)), desc="simulate", unit="step", disable=not show_progress):
        n = int(active[step])
        before = current[:n]
        why = random.below(100, n)
        follows = successors[before, next_rank[random.below(len(next_rank), n)]]
        liked = favourites[np.arange(n), favourite_rank[random.below(len(favourite_rank), n)]]
        current = random.weighted(popularity, n)
        current = np.where(why < stays, before, current)
        current = np.where(why < likes, liked, current)
        current = np.where(why < structure.transition, follows, current)
        result[start[:n] + step] = current
    return result


def _ladder(n: int) -> np.ndarray:
    """0..n-1, each half as often as the one before: (0, 0, 0, 0, 1, 1, 2) for 3."""
    return np.repeat(np.arange(n), 2 ** np.minimum(np.arange(n)[::-1], 20))


def _deal(
    random: _Random,
    lengths: np.ndarray,
    intents: np.ndarray,
    n_items: int,
    n_intents: int,
    taste: int,
    offset: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Deal items to events, so that each occurs and popularity inside each intent is Zipf.

    Both sides, the events of an intent and its items repeated as often as they shall occur, are sorted by
    taste or style mixed with chance, and paired in that order.

    Returns:
        The item of each event, int32 [n_interactions], and the intent of each item, int32 [n_items].
    """
    events_in = np.bincount(intents, minlength=n_intents)
    present = np.flatnonzero(events_in)
    n_events = events_in[present]
    # An intent has at least one item and at most as many as it has events.
    sizes = 1 + _apportion(np.array([n_items - len(present)]), n_events - 1, np.array([len(present)]))
    intent_of = np.repeat(present.astype(np.int32), sizes)
    rank = np.arange(n_items, dtype=np.int64) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    times = 1 + _apportion(n_events - sizes, _ZIPF // (rank + offset), sizes)

    users = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    taste_of, style_of = random.below(2**_BITS, len(lengths)), random.below(2**_BITS, n_items)
    slots = np.repeat(np.arange(n_items, dtype=np.int32), times)
    events = _by_taste(random, intents, taste_of[users], taste)
    items = np.empty(len(intents), dtype=np.int32)
    items[events] = slots[_by_taste(random, intent_of[slots], style_of[slots], taste)]
    _avoid_repeats(random, users, items, intents, events, events_in)
    return items, intent_of


def _by_taste(random: _Random, intents: np.ndarray, leaning: np.ndarray, taste: int) -> np.ndarray:
    """The order by intent and, inside an intent, by `leaning` mixed with chance as taste : 100 - taste."""
    mixed = leaning * taste + random.below(2**_BITS, len(leaning)) * (100 - taste)  # < 100 * 2**20 < 2**27
    return np.argsort((intents.astype(np.int64) << 27) + mixed, kind="stable")


def _avoid_repeats(
    random: _Random,
    users: np.ndarray,
    items: np.ndarray,
    intents: np.ndarray,
    events: np.ndarray,
    events_in: np.ndarray,
) -> None:
    """Swap, in place, an item that its user already had with that of another event of the intent.

    How often an item occurs stays as it was. A few rounds: what is left are intents with hardly any item but this one.

    Args:
        random: source of chance.
        users: of each event.
        items: of each event, changed in place.
        intents: of each event.
        events: the events sorted by intent.
        events_in: events of each intent, [n_intents].
    """
    first = np.cumsum(events_in) - events_in
    for _ in range(_ROUNDS):
        key = users.astype(np.int64) * (int(items.max()) + 1) + items
        order = np.argsort(key, kind="stable")
        again = order[1:][np.diff(key[order]) == 0]
        if not len(again):
            return
        intent = intents[again]
        other = events[first[intent] + random.below(events_in[intent], len(again))]
        # An event may move once in a round; np.unique keeps the first of those that drew the same other one.
        drawn_once = np.unique(other, return_index=True)[1]
        movable = drawn_once[~np.isin(other[drawn_once], again)]
        left, right = again[movable], other[movable]
        items[left], items[right] = items[right], items[left]


def _times(random: _Random, lengths: np.ndarray) -> np.ndarray:
    """Draw seconds since 1970, int64 [n_interactions].

    A user starts within four years from 2010 and stays half a year to five years on average.

    Whole hours, as RecBole turns time into float32, which at 1.3e9 s cannot tell apart what is within 128 s.
    """
    begin = random.below(4 * _YEAR, len(lengths))
    span = _YEAR // 2 + random.below(9 * _YEAR // 2, len(lengths))
    gaps = 1 + random.below(np.repeat(1 + 2 * span // lengths, lengths), int(lengths.sum()))
    hours = np.cumsum(gaps)
    start = np.cumsum(lengths) - lengths
    hours += np.repeat(begin - hours[start], lengths)
    return _EPOCH + _HOUR * hours


def _categorical(codes: np.ndarray, names: list[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(names))


def _names(letter: str, n: int) -> list[str]:
    return [f"{letter}{number}" for number in range(1, n + 1)]


# ------------------------------------------------------------------------------------------------------ files
def write_simulated(
    folder: str | Path,
    name: str,
    *,
    replace: bool = False,
    show_progress: bool = False,
    **parameters: Any,
) -> Written:
    """Simulate a data set and write it with its README.md and `simulation.json`, all of it or nothing.

    Args:
        folder: the data set's own folder.
        name: the data set's name.
        replace: whether a simulated data set in `folder` may be replaced; one that is not simulated never is.
        show_progress: progress bars on stderr.
        **parameters: those of `simulate`, for example `**PRESETS["amazon"]`.

    Raises:
        AtomicFileError: `folder` holds what may not be replaced.
        ConfigError: a shape that cannot be.
    """
    folder = Path(folder)
    check_target(folder, name, [MANIFEST], replace)
    if (folder / f"{name}.inter").exists() and is_simulated(folder) is None:
        raise AtomicFileError(
            f"{folder}: has no {MANIFEST}, so its data are not simulated and will not be "
            "replaced by simulated ones; choose another name or folder"
        )
    tables = simulate(**parameters, show_progress=show_progress)

    def manifest(written: Written) -> str:
        intents = len(pc.unique(tables.items[INTENT]))
        content = {
            "simulated": True,
            "generator": GENERATOR,
            "name": name,
            "parameters": tables.parameters,
            "counts": {
                "users": written.users,
                "items": written.items,
                "intents": intents,
                "interactions": written.interactions,
            },
            "sha256": written.sha256,
        }
        return json.dumps(content, indent=2) + "\n"

    return write_dataset(
        folder,
        name,
        Stream.of(tables.interactions),
        Stream.of(tables.items),
        n_items=tables.items.num_rows,  # each occurs
        texts={MANIFEST: manifest, "README.md": lambda written: _readme(json.loads(manifest(written)))},
        replace=replace,
        show_progress=show_progress,
    )


def ensure_amazon(folder: str | Path) -> Path:
    """Make the `amazon` sample that the repository ships in `folder`, unless there is `amazon.inter`.

    Real data are left alone, whatever they are. Safe when several processes do it at the same time.

    Raises:
        AtomicFileError: `folder` holds other files.
    """
    folder = Path(folder)
    restore(folder)
    if not (folder / "amazon.inter").exists():
        try:
            write_simulated(folder, "amazon", **PRESETS["amazon"])
        except (AtomicFileError, OSError):
            if not (folder / "amazon.inter").exists():  # else another process was faster, with the same bytes
                raise
    return folder


def verify(folder: str | Path) -> dict[str, Any]:
    """The content of `simulation.json`, after comparing the checksum of each file it names.

    Raises:
        AtomicFileError: the data set is not simulated, or a file is missing or not as it was made.
    """
    folder = Path(folder)
    content = is_simulated(folder)
    if content is None:
        raise AtomicFileError(f"{folder}: no {MANIFEST}, expected a simulated data set")
    for file, expected in content["sha256"].items():
        if not (folder / file).is_file():
            raise AtomicFileError(f"{folder / file}: no such file, but {MANIFEST} names it")
        actual = checksum(folder / file)
        if actual != expected:
            raise AtomicFileError(
                f"{folder / file}: found sha256 {actual}, expected {expected}; it is not as simulated"
            )
    return content


def _readme(manifest: dict[str, Any]) -> str:
    name, counts, parameters = manifest["name"], manifest["counts"], manifest["parameters"]
    real = "not Amazon data" if name == "amazon" else "not collected anywhere"
    checksums = "\n".join(f"| `{file}` | `{digest}` |" for file, digest in manifest["sha256"].items())
    text = f"""# {name} (simulated)

The data in this folder are **simulated, {real}**. They have the shape of the data in Li et al.,
"Coarse-to-Fine Sparse Sequential Recommendation" (SIGIR 2022), sparse items and long-tailed intents, so that
everything can be tried at once. Numbers measured on them say that the code works, not how good a model is.
The file `{MANIFEST}` is how the package knows that they are simulated.

| | |
|---|---|
| users | {counts["users"]:,} |
| items | {counts["items"]:,} |
| intents | {counts["intents"]:,} |
| interactions | {counts["interactions"]:,} |
| interactions per item | {per_item(counts["interactions"], counts["items"])} |
| interactions per user | {per_item(counts["interactions"], counts["users"])} |

**Source.** Made by `recbole_cafe/prepare/simulate.py`, generator {manifest["generator"]},
seed {parameters["seed"]}. No person and no shop is behind any row.

**Licence.** Dedicated to the public domain
([CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/)); where that has no effect, the repository's
MIT licence holds.

**Command.** It makes the same bytes on every platform:

```
{_command(name, parameters)}
```

**Columns.** `{name}.inter`: `user_id`, `item_id`, `timestamp` (whole hours, in seconds since 1970), sorted by
user, then time. `{name}.item`: `item_id`, `intent`.

**Checksums** (sha256).

| file | sha256 |
|---|---|
{checksums}
"""
    if name == "amazon":
        text += """
## The real data

`recbole-cafe prepare amazon` builds them from the published reviews and puts them in the place of this sample; see
`docs/data.md`. RecBole atomic files of your own go to `<data_path>/amazon/` as `amazon.inter` (`user_id:token`,
`item_id:token`, `timestamp:float`) and `amazon.item` (`item_id:token`, `intent:token`), with
`--data_path=<data_path>`. Without a `simulation.json` beside them they count as real.
"""
    return text


def per_item(above: int, below: int) -> str:
    """Interactions per item with two decimals, by integers, so that the text too is the same everywhere."""
    hundredths = (200 * above + below) // (2 * below)
    return f"{hundredths // 100}.{hundredths % 100:02d}"


def _command(name: str, parameters: dict[str, Any]) -> str:
    shape = {key: parameters[key] for key in PRESETS["amazon"]}
    options = next((f" --preset={preset}" for preset, known in PRESETS.items() if known == shape), None)
    if options is None:
        options = "".join(f" --{key.removeprefix('n_')}={value}" for key, value in shape.items())
    elif shape == PRESETS["amazon"]:
        options = ""  # the default
    if parameters["seed"] != SEED:
        options += f" --seed={parameters['seed']}"
    command = f"recbole-cafe simulate --name={name} --out=dataset_atomic{options}"
    changed = {key: parameters[key] for key, value in asdict(Structure()).items() if parameters[key] != value}
    return command + (f"   # with Structure(**{changed}), from Python" if changed else "")


# ----------------------------------------------------------------------------------------------- command line
