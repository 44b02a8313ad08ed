"""A bundle: a trained model as a folder of plain files, complete for recommending.

    bundle.json           model, settings, counts, where it comes from, and the sha256 of every file
    weights.safetensors   the net's state, and the items' vectors where they are not the net's embedding itself
    items.arrow           item, intent, title, how often it was interacted with, and the order of the items' tokens
    intents.arrow         token of each intent
    interactions.arrow    user and item that were trained on; only for models that count, to go on counting
    README.md             a card for people (recbole_cafe.recommend.card), who may edit it: it has no digest

Everything is written whole or not at all, and nothing is used before its digest has been compared. Opening a bundle
runs no code of it: the formats hold numbers and text alone, and what they claim is checked against each other.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from recbole_cafe import __version__
from recbole_cafe.config.signature import arguments_of, signature_of
from recbole_cafe.data.facts import DataFacts, ItemIntents
from recbole_cafe.errors import ConfigError, DataError, OutputError, did_you_mean
from recbole_cafe.files.whole import whole_folder
from recbole_cafe.layers.embedding import tables_given_later
from recbole_cafe.model import MODELS, net_class
from recbole_cafe.model.net import Net, Ranking
from recbole_cafe.recommend.card import CARD, card, with_updates

FORMAT = 1
MANIFEST, WEIGHTS, ITEMS, INTENTS, INTERACTIONS = (
    "bundle.json", "weights.safetensors", "items.arrow", "intents.arrow", "interactions.arrow",
)  # fmt: skip
RANKED = "ranking/"  # prefix of tensors that the ranking reads and the net does not have
DIGESTED = 1 << 24  # bytes hashed at a time
LARGEST_MANIFEST = 1 << 24  # bytes


class BundleError(DataError):
    """The folder is not a bundle, or a damaged one, or of another version. The message names the file."""


@dataclass(frozen=True)
class Items:
    """What is known of V - 1 items, in the order of their ids, which begin at 1.

    Attributes:
        token: their names.
        intent: [V] ids of their intents: 0 for padding, C for an item without one.
        seen: [V] how often each was interacted with in training; 0 for padding.
        intents: [C] tokens of the intents; that of padding, 0, is empty.
        title: what to show of them, or None.
        order: [V - 1] places of the tokens in the order of their UTF-8 bytes.
    """

    token: pa.Array
    intent: Tensor
    seen: Tensor
    intents: pa.Array
    title: pa.Array | None
    order: np.ndarray

    @property
    def n(self) -> int:
        """V, padding included."""
        return len(self.token) + 1


@dataclass(frozen=True)
class Interactions:
    """What a model was trained on, in the order of users, then time.

    Attributes:
        user: [P] tokens.
        item: [P] ids.
    """

    user: pa.Array
    item: np.ndarray


@dataclass(frozen=True)
class Bundle:
    """A model that can be asked.

    Attributes:
        model: name in MODELS.
        settings: the keys of its net.
        max_seq_length: L, so many of a history's newest items are read.
        net: in evaluation mode.
        items: what is known of the items.
        interactions: gives what was trained on; None if that was left out, or is of no use to the model.
        about: where it comes from: data set, digests, versions.
        intent_temperature: the power that makes calibrated probabilities of the intents is one over it; None if there
            was no validation to learn it from.
        ranked: the tensors that :meth:`Net.ranked` gave; None to make them.
    """

    model: str
    settings: Mapping[str, Any]
    max_seq_length: int
    net: Net
    items: Items
    interactions: Callable[[], Interactions] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    intent_temperature: float | None = None
    ranked: Mapping[str, Tensor] | None = None

    @cached_property
    def catalogue(self) -> Ranking:
        """The items as they are ranked."""
        return self.net.catalogue(self.ranked)


# Writing --------------------------------------------------------------------------------------------------------------


def write(
    bundle: Bundle, folder: str | os.PathLike[str], *, replace: bool = False, kept_card: str | None = None
) -> None:
    """Write a bundle, whole or not at all.

    Args:
        bundle: the model.
        folder: the folder to make.
        replace: whether a bundle that is there may be replaced; its readers keep the old one until they look again.
        kept_card: the card that it had before it was updated; None to make one.

    Raises:
        ConfigError: the net cannot be asked outside of training.
        OutputError: the folder holds something else, or cannot be written.
    """
    if bundle.net.not_served:
        raise ConfigError(f"{bundle.model} cannot be exported: {bundle.net.not_served}")
    path = Path(folder).resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check = partial(check_place, path, replace=replace)
        with whole_folder(path, replace=replace, check=check) as temporary:
            _write_files(bundle, temporary)
            text = card(bundle) if kept_card is None else with_updates(kept_card, bundle)
            (temporary / CARD).write_text(text, encoding="utf-8")
    except OutputError:
        raise
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def check_place(folder: str | os.PathLike[str], *, replace: bool) -> None:
    """Raise unless a bundle may be written to a folder; see :func:`write`.

    Raises:
        OutputError: it holds something else, or a bundle that is to stay.
    """
    path = Path(folder)
    if not path.exists():
        return
    if not path.is_dir():
        raise OutputError(f"{path} is a file, expected a folder to write a bundle to")
    if any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise OutputError(f"{path} holds files and no {MANIFEST}: it is not replaced by a bundle")
    if any(path.iterdir()) and not replace:
        raise OutputError(
            f"{path} holds a bundle already; give another folder, or ask for it to be replaced (--replace)"
        )


def _write_files(bundle: Bundle, folder: Path) -> None:
    items = bundle.items
    state = {name: value.contiguous() for name, value in bundle.net.state_dict().items()}
    state |= {RANKED + name: value.contiguous() for name, value in bundle.net.ranked().items()}
    save_file(_own_storage(state), folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o666 & ~_umask())  # safetensors makes it readable to its owner alone
    table = {"item": items.token, "intent": pa.array(items.intent[1:].numpy().astype(np.int32)),
             "seen": pa.array(items.seen[1:].numpy().astype(np.int64)), "order": pa.array(items.order)}  # fmt: skip
    if items.title is not None:
        table["title"] = items.title
    _write_arrow(folder / ITEMS, table)
    _write_arrow(folder / INTENTS, {"intent": items.intents})
    names = [WEIGHTS, ITEMS, INTENTS]
    if bundle.interactions is not None:
        known = bundle.interactions()
        columns = {"user": known.user.dictionary_encode(), "item": pa.array(known.item.astype(np.int32))}
        _write_arrow(folder / INTERACTIONS, columns)
        names.append(INTERACTIONS)
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(names, pool.map(_digest, [folder / name for name in names]), strict=True))
    content = {
        "format": FORMAT, "model": bundle.model, "settings": dict(bundle.settings),
        "max_seq_length": bundle.max_seq_length, "n_items": items.n, "n_intents": len(items.intents),
        "intent_temperature": bundle.intent_temperature,
        "about": {**bundle.about, "written_by": f"recbole-cafe {__version__}"}, "sha256": digests,
    }  # fmt: skip
    content["seal"] = _seal(content)
    (folder / MANIFEST).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _own_storage(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory."""
    taken: set[int] = set()
    own = {}
    for name, value in state.items():
        address = value.untyped_storage().data_ptr()
        own[name] = value.clone() if address in taken and value.numel() else value
        taken.add(address)
    return own


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def _write_arrow(path: Path, columns: Mapping[str, pa.Array]) -> None:
    table = pa.table(dict(columns))
    with pa.OSFile(os.fspath(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(table)))  # one block, so that it can be mapped as it is


# Reading --------------------------------------------------------------------------------------------------------------


def read(folder: str | os.PathLike[str]) -> Bundle:
    """Open a bundle. Tables are mapped from the files, not copied.

    Args:
        folder: of the bundle.

    Raises:
        BundleError: no bundle, a damaged one, one of a later version, or one whose parts do not fit each other.
    """
    path = Path(folder)
    content = _manifest(path)
    named = content["sha256"]
    for name in named:
        _check_plain(path / name)
    with ThreadPoolExecutor() as pool:
        for name, found in zip(named, pool.map(_digest_or_none, [path / name for name in named]), strict=True):
            if found is None:
                raise BundleError(f"{path / name} is missing or cannot be read; {MANIFEST} names it")
            if found != named[name]:
                raise BundleError(f"{path / name} is damaged, or not the file the bundle was written with: its digest "
                                  f"is {found[:12]}..., {MANIFEST} says {named[name][:12]}...")  # fmt: skip
    try:
        return _assembled(path, content)
    except (pa.ArrowException, SafetensorError, KeyError, IndexError, TypeError, ValueError, OverflowError,
            RuntimeError, OSError, MemoryError) as error:  # fmt: skip
        if isinstance(error, BundleError):
            raise
        said = " ".join(str(error).split())[:300]
        raise BundleError(f"{path}: its parts do not fit each other ({type(error).__name__}: {said})") from error


def version_of(folder: str | os.PathLike[str]) -> str:
    """What tells one bundle from another in the same place: the seal of its manifest, unverified.

    Raises:
        BundleError: there is none.
    """
    return str(_manifest(Path(folder))["seal"])


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    _check_plain(file)
    try:
        if file.stat().st_size > LARGEST_MANIFEST:
            raise BundleError(f"{file} has {file.stat().st_size} bytes, more than any bundle's")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, NotADirectoryError) as error:
        raise BundleError(f"{path} is no bundle: {MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is damaged: it is not JSON ({error})") from error
    expected = {"format": int, "model": str, "settings": dict, "max_seq_length": int, "n_items": int,
                "n_intents": int, "about": dict, "sha256": dict, "seal": str}  # fmt: skip
    if not isinstance(content, dict):
        raise BundleError(f"{file} is damaged: it holds a {type(content).__name__}, expected an object")
    for key, kind in expected.items():
        if not isinstance(content.get(key), kind) or isinstance(content[key], bool):
            raise BundleError(f"{file}: {key} should be a {kind.__name__}, found {content.get(key)!r:.60}")
    if not _is_temperature(content.get("intent_temperature")):
        raise BundleError(f"{file}: intent_temperature should be a number above 0 or null, found "
                          f"{content.get('intent_temperature')!r:.60}")  # fmt: skip
    for name, digest in content["sha256"].items():
        if not isinstance(digest, str):
            raise BundleError(f"{file}: sha256 of {name!r:.60} should be text, found {digest!r:.60}")
    if content["format"] != FORMAT:
        raise BundleError(f"{file} has format {content['format']}, this version of recbole-cafe reads {FORMAT}")
    try:
        seal = _seal(content)
    except (RecursionError, ValueError) as error:
        raise BundleError(f"{file} is damaged: {error}") from error
    if content["seal"] != seal:
        raise BundleError(f"{file} was changed after it was written: its seal does not fit")
    if content["model"] not in MODELS:
        hint = did_you_mean(content["model"], MODELS)
        raise BundleError(f"{file}: model {content['model']!r:.60} is none of ours{hint}")
    names = set(content["sha256"])
    if not {WEIGHTS, ITEMS, INTENTS} <= names <= {WEIGHTS, ITEMS, INTENTS, INTERACTIONS}:
        raise BundleError(f"{file}: sha256 names {sorted(names)!r:.200}, expected {WEIGHTS}, {ITEMS}, {INTENTS} and, "
                          f"for models that count, {INTERACTIONS}")  # fmt: skip
    return content


def _check_plain(file: Path) -> None:
    """Raise if a file is there and is a link, a pipe, a folder: nothing outside of a bundle is read, or waited for."""
    if file.is_symlink():
        raise BundleError(f"{file} is a link, expected a file of the bundle's own")
    if file.exists() and not file.is_file():
        raise BundleError(f"{file} is not a plain file")


def _is_temperature(value: object) -> bool:
    return value is None or (isinstance(value, float) and 0 < value < math.inf)


def _assembled(path: Path, content: Mapping[str, Any]) -> Bundle:
    n_items, n_intents, length = content["n_items"], content["n_intents"], content["max_seq_length"]
    if not 1 <= length <= 1 << 20:
        raise BundleError(f"{path / MANIFEST}: max_seq_length={length}, expected a number of items")
    items = _read_items(path, n_items, n_intents)
    stored = load_file(path / WEIGHTS)
    ranked = {name.removeprefix(RANKED): value for name, value in stored.items() if name.startswith(RANKED)}
    state = {name: value for name, value in stored.items() if not name.startswith(RANKED)}
    for name, value in stored.items():
        if value.is_floating_point() and value.numel() and not all(map(math.isfinite, map(float, value.aminmax()))):
            raise BundleError(f"{path / WEIGHTS}: {name} holds numbers that are not finite")
    nothing = torch.zeros(0, dtype=torch.long)
    facts = DataFacts(n_items=n_items, n_users=1, max_seq_length=length, train_pairs=lambda: (nothing, nothing),
                      intents=lambda: ItemIntents(items.intent, n_intents))  # fmt: skip
    with tables_given_later(), _no_more_numbers_than(sum(value.numel() for value in state.values()), path):
        net = build(content["model"], content["settings"], facts, path / MANIFEST)
    if net.not_served:
        raise BundleError(f"{path}: {content['model']} cannot be asked outside of training: {net.not_served}")
    for name, made in net.state_dict().items():
        if name in state and state[name].dtype != made.dtype:
            raise BundleError(f"{path / WEIGHTS}: {name} is of type {state[name].dtype}, expected {made.dtype}")
    net.load_state_dict(state, assign=True)
    net.check_loaded()
    known = (lambda: _read_interactions(path, n_items)) if INTERACTIONS in content["sha256"] else None
    _check_order(ranked, n_items, path / WEIGHTS)
    bundle = Bundle(content["model"], content["settings"], length, net.eval().requires_grad_(False), items, known,
                    content["about"], content["intent_temperature"], ranked)  # fmt: skip
    assert bundle.catalogue  # now: its parts may not fit
    _try(bundle)
    return bundle


@torch.inference_mode()
def _try(bundle: Bundle) -> None:
    """Ask a bundle once: of what does not fit together, only the arithmetic knows all."""
    if bundle.items.n > 1:
        query = bundle.net.query(torch.tensor([[1, bundle.items.n - 1][: bundle.max_seq_length]]))
        score = bundle.catalogue.top(query, 1)[1]
        if not bool(score.isfinite().all()):
            raise ValueError("the scores of its model are not finite")


def _check_order(ranked: Mapping[str, Tensor], n_items: int, path: Path) -> None:
    """Raise unless the order of items by intent, which leads into every table, has each of them once."""
    order = ranked.get("items")
    if order is None or order.dtype != torch.long or order.dim() != 1 or len(order) != n_items - 1:
        raise BundleError(f"{path}: {RANKED}items should be the {n_items - 1} items in an order")
    size = ranked.get("size")
    if size is None or size.dtype != torch.long or (size < 0).any() or int(size.sum()) != n_items - 1:
        raise BundleError(f"{path}: {RANKED}size should be how many items each intent has, {n_items - 1} in all")
    if n_items > 1 and (int(order.min()) < 1 or int(order.max()) >= n_items or int(torch.bincount(order).max()) != 1):
        raise BundleError(f"{path}: {RANKED}items should have each item once")


def build(model: str, settings: Mapping[str, Any], facts: DataFacts, source: Path) -> Net:
    """A net from its keys.

    Args:
        model: name in MODELS.
        settings: a value for each key of the net, and for no other.
        facts: of the data.
        source: where the settings stand, for messages.

    Raises:
        BundleError: a key that is missing, unknown or cannot be right.
    """
    kind = net_class(model)
    keys = signature_of(kind).keys
    if unknown := sorted(set(settings) - keys):
        raise BundleError(f"{source}: {model} has no setting {', '.join(unknown)!s:.100}")
    for key, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise BundleError(f"{source}: setting {key}={value} is not finite")
    try:
        net: Net = kind(data=facts, **arguments_of(kind, settings, source))
    except ConfigError as error:
        raise BundleError(f"{source}: {error}") from error
    facts.release()
    return net


@contextmanager
def _no_more_numbers_than(n: int, path: Path) -> Iterator[None]:
    """Settings must not ask for a larger net than the weights have numbers for: a small file, gigabytes of memory."""
    made = 0

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        made += 0 if parameter is None else parameter.numel()
        if made > n:
            raise BundleError(f"{path}: its settings are those of a larger net than its weights ({n} numbers) are")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _mapped(path: Path) -> pa.Table:
    with pa.memory_map(os.fspath(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    table.validate(full=True)
    return table


def _column(table: pa.Table, name: str, kind: pa.DataType, path: Path) -> pa.Array:
    if table.column_names.count(name) != 1:
        raise BundleError(f"{path}: expected one column {name}, found {', '.join(table.column_names)!s:.200}")
    column = table[name]
    if column.type != kind:
        raise BundleError(f"{path}: column {name} is of type {column.type}, expected {kind}")
    chunks = column.chunks or [pa.array([], kind)]
    whole: pa.Array = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    return whole


def _numbers(array: pa.Array, least: int, most: int, path: Path, name: str) -> np.ndarray:
    values: np.ndarray = array.to_numpy(zero_copy_only=array.null_count == 0)
    if array.null_count or (len(values) and not (least <= int(values.min()) and int(values.max()) <= most)):
        raise BundleError(f"{path}: column {name} should hold numbers from {least} to {most} alone")
    return values


def _read_items(path: Path, n_items: int, n_intents: int) -> Items:
    file = path / ITEMS
    table = _mapped(file)
    intents = _column(_mapped(path / INTENTS), "intent", pa.string(), path / INTENTS)
    if len(table) != n_items - 1 or len(intents) != n_intents or n_intents < 1:
        raise BundleError(f"{path}: {MANIFEST} says {n_items} items and {n_intents} intents with padding, the tables "
                          f"have {len(table)} and {len(intents)} rows")  # fmt: skip
    token = _column(table, "item", pa.string(), file)
    if token.null_count:
        raise BundleError(f"{file}: an item without a name")
    intent = _numbers(_column(table, "intent", pa.int32(), file), 1, n_intents, file, "intent")
    seen = _numbers(_column(table, "seen", pa.int64(), file), 0, 1 << 52, file, "seen")
    order = _numbers(_column(table, "order", pa.int32(), file), 0, max(0, n_items - 2), file, "order")
    in_order = token.take(pa.array(order))
    if not pc.all(pc.less(in_order.slice(0, max(0, n_items - 2)), in_order.slice(1))).as_py():
        raise BundleError(f"{file}: column order should put the names of the items in order, each of them once")
    title = _column(table, "title", pa.string(), file) if "title" in table.column_names else None
    return Items(token, _with_padding(intent), _with_padding(seen), intents, title, order)


def _with_padding(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.r_[0, values].astype(np.int64))


def _read_interactions(path: Path, n_items: int) -> Interactions:
    file = path / INTERACTIONS
    try:
        table = _mapped(file)
        user = _column(table, "user", pa.dictionary(pa.int32(), pa.string()), file).dictionary_decode()
        item = _numbers(_column(table, "item", pa.int32(), file), 1, n_items - 1, file, "item")
    except (pa.ArrowException, OSError) as error:
        raise BundleError(f"{file} cannot be read: {error}") from error
    return Interactions(user, item)


# Digests --------------------------------------------------------------------------------------------------------------


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(DIGESTED):
            digest.update(block)
    return digest.hexdigest()


def _digest_or_none(path: Path) -> str | None:
    try:
        return _digest(path)
    except OSError:
        return None


def _seal(content: Mapping[str, Any]) -> str:
    """sha256 of everything in the manifest but itself."""
    rest = {key: value for key, value in content.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sorted_order(tokens: pa.Array) -> np.ndarray:
    """Places of tokens in the order of their UTF-8 bytes. [n] int32.

    Raises:
        DataError: a token that is there twice.
    """
    order: np.ndarray = pc.array_sort_indices(tokens).to_numpy().astype(np.int32)
    in_order = tokens.take(pa.array(order))
    if len(tokens) > 1:
        same = pc.equal(in_order[1:], in_order[:-1])
        if (at := pc.index(same, True).as_py()) >= 0:
            raise DataError(f"item {in_order[at].as_py()!r} is there twice")
    return order
