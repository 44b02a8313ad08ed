"""Mutated bundles, opened and asked: of bytes that decay, and of an author who seals what he has changed."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file

from fuzzing import data_mutations
from fuzzing.children import run_once
from fuzzing.outcomes import check, clear_text, short
from recbole_cafe.errors import ConfigError
from recbole_cafe.recommend import bundle as bundles
from recbole_cafe.recommend.bundle import BundleError, read, write
from recbole_cafe.recommend.recommender import Recommender

sys.path.append(str(Path(__file__).resolve().parents[1] / "recommend"))
from made import bundle_of

MODELS = ("CaFe", "CaFePlus", "IntentBackoff", "NOVA", "CorrectedSINE")
FILES = (bundles.MANIFEST, bundles.WEIGHTS, bundles.ITEMS, bundles.INTENTS, bundles.INTERACTIONS)
TABLES = (bundles.ITEMS, bundles.INTENTS, bundles.INTERACTIONS)
INTENT = {f"i{n}": "xyz"[n % 3] if n % 7 else "" for n in range(40)}
WALKS = {f"u{u}": [f"i{(u * 5 + step * (u % 3 + 1)) % 40}" for step in range(3 + u % 6)] for u in range(25)}
HISTORIES = [["i0", "i5"], ["i9"], [], ["i3", "i4", "i39", "i3"], ["nowhere"]]
OUTSIDE = "outside"  # a folder beside the bundle, which nothing may be read from
BAIT = ("/dev/zero", "/dev/random", "/etc/passwd")
BASE = Path(tempfile.gettempdir())


def before() -> None:
    global BASE
    BASE = Path(tempfile.mkdtemp(prefix="fuzz-base-"))
    atexit.register(shutil.rmtree, BASE, ignore_errors=True)
    run_once(make)


def make() -> None:
    for model in MODELS:
        write(bundle_of(model, WALKS, INTENT), BASE / model)
        (BASE / f"{model}.answer").write_text(json.dumps(answer(BASE / model)))


def answer(folder: Path) -> list[Any]:
    """What an opened bundle says. Everything in it is used."""
    recommender = Recommender(read(folder))
    intents: list[Any] = []
    with contextlib.suppress(ConfigError):  # not all models predict them
        intents = recommender.next_intents(["i0", "i5"]).to_pylist()
    tokens = recommender.items.token.to_pylist()
    asked = [
        recommender.recommend(HISTORIES, k=5, reasons=True).to_pylist(),
        recommender.recommend(HISTORIES, k=5, per_intent=1, allow=tokens[:30], exclude_seen=False).to_pylist(),
        recommender.score(["i1", "i2"], tokens).to_pylist(),
        recommender.similar_items(tokens[1]).to_pylist(),
        intents,
    ]
    if recommender.net.counts_transitions and recommender.bundle.interactions is not None:
        known = recommender.bundle.interactions()
        asked.append([known.user.to_pylist(), known.item.tolist()])
        later = {"user": ["u0", "new"], "item": ["i7", "i8"]}
        updated = recommender.with_interactions(later)
        asked.append(updated.recommend(HISTORIES, k=5).to_pylist())
    return json.loads(json.dumps(asked))


# Bytes ----------------------------------------------------------------------------------------------------------------


def file_of(rng: random.Random, folder: Path) -> Path:
    return rng.choice([folder / name for name in FILES if (folder / name).is_file()])


def bytes_changed(change: Callable[[random.Random, bytes], bytes]) -> Callable[[random.Random, Path], None]:
    def mutation(rng: random.Random, folder: Path) -> None:
        path = file_of(rng, folder)
        path.write_bytes(change(rng, path.read_bytes()))

    mutation.__name__ = change.__name__
    return mutation


def sealed_bytes(change: Callable[[random.Random, bytes], bytes]) -> Callable[[random.Random, Path], None]:
    """The same, and digest and seal fit again: the parsers and checks behind them have to bear it."""

    def mutation(rng: random.Random, folder: Path) -> None:
        path = rng.choice([folder / name for name in FILES[1:] if (folder / name).is_file()])
        path.write_bytes(change(rng, path.read_bytes()))
        seal(folder)

    mutation.__name__ = f"sealed_{change.__name__}"
    return mutation


def zeroed(rng: random.Random, blob: bytes) -> bytes:
    at, size = rng.randrange(len(blob) or 1), rng.choice([4, 64, 4096])
    return (blob[:at] + bytes(size) + blob[at + size :])[: len(blob)]


def number_grown(rng: random.Random, blob: bytes) -> bytes:
    """Eight bytes that a format may read as a length or a place."""
    at = rng.randrange(max(1, len(blob) - 8) // 8 + 1) * 8
    number = rng.choice([0xFF, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
    return blob[:at] + number.to_bytes(8, "little") + blob[at + 8 :]


def file_dropped(rng: random.Random, folder: Path) -> None:
    file_of(rng, folder).unlink()


def file_emptied(rng: random.Random, folder: Path) -> None:
    file_of(rng, folder).write_bytes(b"")


def files_swapped(rng: random.Random, folder: Path) -> None:
    one, other = file_of(rng, folder), file_of(rng, folder)
    one_blob, other_blob = one.read_bytes(), other.read_bytes()
    one.write_bytes(other_blob)
    other.write_bytes(one_blob)


def of_another_bundle(rng: random.Random, folder: Path) -> None:
    path = file_of(rng, folder)
    other = BASE / rng.choice(MODELS) / path.name
    if other.is_file():
        path.write_bytes(other.read_bytes())


def sealed_of_another_bundle(rng: random.Random, folder: Path) -> None:
    of_another_bundle(rng, folder)
    seal(folder)


def folder_in_place(rng: random.Random, folder: Path) -> None:
    path = file_of(rng, folder)
    path.unlink()
    path.mkdir()


def linked_outside(rng: random.Random, folder: Path) -> None:
    """The right bytes, but elsewhere: a link must not be followed."""
    path = file_of(rng, folder)
    elsewhere = folder.parent / OUTSIDE / path.name
    elsewhere.parent.mkdir(exist_ok=True)
    path.rename(elsewhere)
    path.symlink_to(rng.choice([elsewhere, Path("..") / OUTSIDE / path.name]))


def linked_to_device(rng: random.Random, folder: Path) -> None:
    path = file_of(rng, folder)
    path.unlink()
    path.symlink_to(rng.choice([*BAIT, path.name]))


def pipe_in_place(rng: random.Random, folder: Path) -> None:
    """Whoever opens it waits for ever."""
    path = file_of(rng, folder)
    path.unlink()
    os.mkfifo(path)


# Manifest -------------------------------------------------------------------------------------------------------------

OTHERS = [None, 0, -1, 1, 2, 1.5, "x", "", [], {}, True, False, [1], {"a": 1}, 1 << 31, 1 << 63, 1 << 80, -(1 << 63),
          1e308, "../../etc/passwd", "/etc/passwd", "x" * 100_000, "\0", "CaFe", "mean"]  # fmt: skip


def seal(folder: Path, content: dict[str, Any] | None = None) -> None:
    """Write the manifest with the digests of the files as they are, and its seal."""
    path = folder / bundles.MANIFEST
    if content is None:
        content = json.loads(path.read_text(encoding="utf-8"))
        for name in content["sha256"]:
            if (folder / name).is_file():
                content["sha256"][name] = bundles._digest(folder / name)
    content["seal"] = bundles._seal(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def manifest_changed(change: Callable[[random.Random, dict[str, Any]], None]) -> Callable[[random.Random, Path], None]:
    def mutation(rng: random.Random, folder: Path) -> None:
        content = json.loads((folder / bundles.MANIFEST).read_text(encoding="utf-8"))
        change(rng, content)
        seal(folder, content)

    mutation.__name__ = f"manifest_{change.__name__}"
    return mutation


def key_dropped(rng: random.Random, content: dict[str, Any]) -> None:
    part = rng.choice([content, content["settings"], content["sha256"]])
    del part[rng.choice(sorted(part))]


def other_value(rng: random.Random, content: dict[str, Any]) -> None:
    part = rng.choice([content, content["settings"], content["settings"], content["sha256"]])
    part[rng.choice(sorted(part))] = rng.choice(OTHERS)


def not_finite(rng: random.Random, content: dict[str, Any]) -> None:
    part = rng.choice([content, content["settings"]])
    part[rng.choice(sorted(part))] = rng.choice([float("nan"), float("inf"), -float("inf")])


def huge(rng: random.Random, content: dict[str, Any]) -> None:
    """A small file that asks for much."""
    part = rng.choice([content, content["settings"]])
    numbers = [key for key, value in part.items() if type(value) is int]
    part[rng.choice(sorted(numbers) or ["n_items"])] = rng.choice([1 << 20, 1 << 30, 1 << 40, 10**9])


def key_added(rng: random.Random, content: dict[str, Any]) -> None:
    part = rng.choice([content["settings"], content["sha256"]])
    part[rng.choice(["../outside", "/etc/passwd", "data", "__class__", "x.pkl"])] = rng.choice(OTHERS)


def other_model(rng: random.Random, content: dict[str, Any]) -> None:
    content["model"] = rng.choice([*MODELS, "SSEPT", "RecToolsSASRec", "AttRec", "LOCKER", "os.system", "SASRec"])


def counts_off(rng: random.Random, content: dict[str, Any]) -> None:
    content[rng.choice(["n_items", "n_intents", "max_seq_length"])] += rng.choice([-1, 1, -1000, 1000])


def deep(rng: random.Random, folder: Path) -> None:
    depth = rng.choice([900, 10_000, 1_000_000])
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    (folder / bundles.MANIFEST).write_text(opening * depth + "1" + closing * depth)


def huge_number_in_manifest(_rng: random.Random, folder: Path) -> None:
    text = (folder / bundles.MANIFEST).read_text(encoding="utf-8")
    (folder / bundles.MANIFEST).write_text(text.replace('"format": 1', '"format": ' + "9" * 1_000_000))


def huge_manifest(_rng: random.Random, folder: Path) -> None:
    with open(folder / bundles.MANIFEST, "r+b") as file:
        file.truncate(1 << 36)


# Tensors and tables, sealed -------------------------------------------------------------------------------------------

Tensors = dict[str, torch.Tensor]


def tensors_changed(change: Callable[[random.Random, Tensors], None]) -> Callable[[random.Random, Path], None]:
    def mutation(rng: random.Random, folder: Path) -> None:
        tensors = {name: value.clone() for name, value in load_file(folder / bundles.WEIGHTS).items()}
        change(rng, tensors)
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / bundles.WEIGHTS)
        seal(folder)

    mutation.__name__ = f"tensor_{change.__name__}"
    return mutation


def dropped(rng: random.Random, tensors: Tensors) -> None:
    del tensors[rng.choice(sorted(tensors))]


def renamed(rng: random.Random, tensors: Tensors) -> None:
    name = rng.choice(sorted(tensors))
    tensors[rng.choice([f"{name}x", f"ranking/{name}", name.removeprefix("ranking/") + "0"])] = tensors.pop(name)


def other_shape(rng: random.Random, tensors: Tensors) -> None:
    name = rng.choice(sorted(tensors))
    value = tensors[name]
    flat = value.flatten()
    turned = value.T if value.dim() == 2 else value[None]
    shorter = value[:-1] if value.dim() else value
    tensors[name] = rng.choice([value[None], flat, flat[:0], torch.cat([flat] * 2), turned, shorter])


def other_dtype(rng: random.Random, tensors: Tensors) -> None:
    name = rng.choice(sorted(tensors))
    tensors[name] = tensors[name].to(rng.choice([torch.float64, torch.float16, torch.int64, torch.bool, torch.int8]))


def ids_out_of_range(rng: random.Random, tensors: Tensors) -> None:
    whole = [name for name, value in tensors.items() if not value.is_floating_point() and value.numel()]
    if not whole:
        return other_dtype(rng, tensors)
    flat = tensors[rng.choice(sorted(whole))].view(-1)
    limits = [-1, 0, 40, 41, 10**6, -(10**6)] if flat.dtype != torch.bool else [True, False]
    flat[rng.randrange(len(flat))] = rng.choice(limits)
    return None


def nan(rng: random.Random, tensors: Tensors) -> None:
    floating = [name for name, value in tensors.items() if value.is_floating_point() and value.numel()]
    flat = tensors[rng.choice(sorted(floating))].view(-1)
    flat[rng.randrange(len(flat))] = rng.choice([float("nan"), float("inf"), -float("inf")])


def table_changed(change: Callable[[random.Random, pa.Table], pa.Table]) -> Callable[[random.Random, Path], None]:
    def mutation(rng: random.Random, folder: Path) -> None:
        path = rng.choice([folder / name for name in TABLES if (folder / name).is_file()])
        with pa.OSFile(os.fspath(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        table = change(rng, table)
        with pa.OSFile(os.fspath(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        seal(folder)

    mutation.__name__ = f"table_{change.__name__}"
    return mutation


def column_dropped(rng: random.Random, table: pa.Table) -> pa.Table:
    return table.drop_columns([rng.choice(table.column_names)])


def column_twice(rng: random.Random, table: pa.Table) -> pa.Table:
    name = rng.choice(table.column_names)
    return table.append_column(name, table[name])


def column_of_another_type(rng: random.Random, table: pa.Table) -> pa.Table:
    at = rng.randrange(table.num_columns)
    kinds = [pa.int8(), pa.float64(), pa.bool_(), pa.binary(4), pa.null(), pa.list_(pa.int64())]
    return table.set_column(at, table.column_names[at], pa.nulls(len(table), rng.choice(kinds)))


def nulls(rng: random.Random, table: pa.Table) -> pa.Table:
    at = rng.randrange(table.num_columns)
    cells = table.column(at).to_pylist()
    cells[rng.randrange(len(cells))] = None
    return table.set_column(at, table.column_names[at], pa.array(cells, table.column(at).type))


def cells_out_of_range(rng: random.Random, table: pa.Table) -> pa.Table:
    whole = [at for at, kind in enumerate(table.schema.types) if pa.types.is_integer(kind)]
    if not whole:
        return rows_doubled(rng, table)
    at = rng.choice(whole)
    cells = table.column(at).to_numpy().copy()
    limits = np.iinfo(cells.dtype)
    cells[rng.randrange(len(cells))] = rng.choice([-1, 0, 4, 39, 40, 41, limits.min, limits.max])
    return table.set_column(at, table.column_names[at], pa.array(cells))


def tokens_doubled(rng: random.Random, table: pa.Table) -> pa.Table:
    texts = [at for at, kind in enumerate(table.schema.types) if pa.types.is_string(kind)]
    if not texts:
        return nulls(rng, table)
    cells = table.column(texts[0]).to_pylist()
    cells[rng.randrange(len(cells))] = rng.choice(cells)
    return table.set_column(texts[0], table.column_names[texts[0]], pa.array(cells, pa.string()))


def rows_doubled(_rng: random.Random, table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table])


def no_rows(_rng: random.Random, table: pa.Table) -> pa.Table:
    return table.slice(0, 0)


def shuffled(rng: random.Random, table: pa.Table) -> pa.Table:
    order = list(range(len(table)))
    rng.shuffle(order)
    return table.take(order)


BYTES = [data_mutations.bit_flipped, data_mutations.byte_inserted, data_mutations.byte_deleted,
         data_mutations.span_deleted, data_mutations.span_doubled, data_mutations.truncated, zeroed]  # fmt: skip
CLASSES: dict[str, list[Callable[[random.Random, Path], None]]] = {
    "bytes": [*map(bytes_changed, BYTES), file_dropped, file_emptied, files_swapped, of_another_bundle],
    "sealed bytes": [*map(sealed_bytes, [*BYTES, number_grown, number_grown]), sealed_of_another_bundle],
    "links": [linked_outside, linked_to_device, folder_in_place, pipe_in_place],
    "manifest": [
        *map(manifest_changed, [key_dropped, other_value, other_value, not_finite, huge, key_added, other_model]),
        manifest_changed(counts_off), deep, huge_number_in_manifest, huge_manifest,
    ],
    "tensors": [*map(tensors_changed, [dropped, renamed, other_shape, other_dtype, ids_out_of_range,
                                       ids_out_of_range, nan])],
    "tables": [*map(table_changed, [column_dropped, column_twice, column_of_another_type, nulls, cells_out_of_range,
                                    cells_out_of_range, tokens_doubled, rows_doubled, no_rows, shuffled])],
}  # fmt: skip
# Changes that leave a bundle which fits together: another model than was written, but one that can be asked
MAY_DIFFER = ("sealed bytes", "manifest", "tensors", "tables")


def case(rng: random.Random, folder: Path, note: dict[str, Any]) -> str:
    model, of = rng.choice(MODELS), rng.choice(list(CLASSES))
    mutation = rng.choice(CLASSES[of])
    note["class"], note["mutations"], note["input"] = of, [mutation.__name__], model
    place = folder / "bundle"
    shutil.copytree(BASE / model, place)
    mutation(rng, place)
    opened = watch(folder, place)
    try:
        found = answer(place)
    except Exception as error:
        check(not opened(), f"read outside of the bundle: {opened()}")
        note["detail"] = clear_text(error, ["bundle"])
        check(isinstance(error, BundleError), f"{type(error).__name__}: {short(str(error))}", "unclear error")
        return "clear error"
    check(not opened(), f"read outside of the bundle: {opened()}")
    wanted = json.loads((BASE / f"{model}.answer").read_text())
    if found == wanted:
        return "equal"
    check(of in MAY_DIFFER, "another answer than was written")
    check(finite(found), "an answer with numbers that are not finite")
    return "another model"


def finite(part: Any) -> bool:
    if isinstance(part, dict):
        return all(map(finite, part.values()))
    if isinstance(part, list):
        return all(map(finite, part))
    return not isinstance(part, float) or bool(np.isfinite(part))


def watch(folder: Path, place: Path) -> Callable[[], list[str]]:
    """What is opened outside of the bundle from now on, by Python's audit events: the bait there is."""
    seen: list[str] = []
    inside, outside = os.path.realpath(place), os.path.realpath(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str):
            path = os.path.realpath(arguments[0])
            if path in BAIT or (path.startswith(outside) and not path.startswith(inside)):
                seen.append(path)

    sys.addaudithook(hook)
    return lambda: seen
