"""Mutated checkpoints of a small model, loaded with their data and resumed from."""

from __future__ import annotations

import atexit
import copy
import io
import os
import pickletools
import random
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recbole.utils import get_trainer

from fuzzing import data_mutations
from fuzzing.children import run_once
from fuzzing.data import SETTINGS
from fuzzing.data_mutations import data_set
from fuzzing.data_oracle import NAME
from fuzzing.outcomes import check, clear_text, short
from recbole_cafe import experiment
from recbole_cafe.config.config import Config
from recbole_cafe.host.reload import load_data_and_model
from recbole_cafe.train.trainer import trainer_class

FILE = "model.pth"
BASE = Path(tempfile.gettempdir())  # of the trained model; `before` makes it


def before() -> None:
    global BASE
    BASE = Path(tempfile.mkdtemp(prefix="fuzz-base-"))
    atexit.register(shutil.rmtree, BASE, ignore_errors=True)
    run_once(train)


def train() -> None:
    os.chdir(BASE)
    tables = data_set(random.Random(0))
    tables.render()
    (BASE / NAME).mkdir()
    for ending, blob in tables.blobs.items():
        (BASE / NAME / f"{NAME}.{ending}").write_bytes(blob)
    result = experiment.run("CaFe", NAME, config_dict=settings())
    shutil.copy(result.checkpoint, BASE / FILE)
    load_data_and_model(BASE / FILE)
    fresh_trainer().resume_checkpoint(str(BASE / FILE))


def settings() -> dict[str, Any]:
    return SETTINGS | {"data_path": str(BASE), "average_from": 1, "state": "WARNING"}


# Bytes and members of the archive ------------------------------------------------------------------------------------


def members_of(blob: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def member_of(rng: random.Random, members: dict[str, bytes]) -> str:
    """Mostly a tensor."""
    return rng.choice([*[name for name in members if "/data/" in name] * 3, *members])


def member_changed(change: Callable[[random.Random, bytes], bytes], pickled: bool = False) -> Callable[..., bytes]:
    def mutation(rng: random.Random, blob: bytes) -> bytes:
        members = members_of(blob)
        name = next(name for name in members if name.endswith("data.pkl")) if pickled else member_of(rng, members)
        return archive_of([*(members | {name: change(rng, members[name])}).items()])

    mutation.__name__ = ("pickle_" if pickled else "member_") + change.__name__
    return mutation


def member_dropped(rng: random.Random, blob: bytes) -> bytes:
    members = members_of(blob)
    del members[rng.choice(list(members))]
    return archive_of(list(members.items()))


def member_twice(rng: random.Random, blob: bytes) -> bytes:
    members = list(members_of(blob).items())
    name, content = rng.choice(members)
    return archive_of([*members, (name, data_mutations.bit_flipped(rng, content))])


def members_swapped(rng: random.Random, blob: bytes) -> bytes:
    members = members_of(blob)
    one, other = member_of(rng, members), member_of(rng, members)
    members[one], members[other] = members[other], members[one]
    return archive_of(list(members.items()))


def member_renamed(rng: random.Random, blob: bytes) -> bytes:
    members = list(members_of(blob).items())
    at = rng.randrange(len(members))
    members[at] = (rng.choice([members[at][0] + "x", "../x", "/x", members[at][0].upper()]), members[at][1])
    return archive_of(members)


def compressed(_rng: random.Random, blob: bytes) -> bytes:
    return archive_of(list(members_of(blob).items()), zipfile.ZIP_DEFLATED)


def zeros_appended(rng: random.Random, blob: bytes) -> bytes:
    members = members_of(blob)
    members[member_of(rng, members)] = bytes(1 << 28)
    return archive_of(list(members.items()), zipfile.ZIP_DEFLATED)


def empty_archive(_rng: random.Random, _blob: bytes) -> bytes:
    return archive_of([])


def declared_size(rng: random.Random, blob: bytes) -> bytes:
    """Another number in the entry of a member in the archive's directory."""
    entries = [at for at in range(len(blob) - 46) if blob[at : at + 4] == b"PK\x01\x02"]
    at = rng.choice(entries) + rng.choice([16, 20, 24, 42])  # checksum, packed size, size, place
    return blob[:at] + struct.pack("<I", rng.choice([0, 1, 1 << 20, (1 << 31) - 1, (1 << 32) - 1])) + blob[at + 4 :]


def bits_flipped(rng: random.Random, blob: bytes) -> bytes:
    for _ in range(rng.choice([2, 8, 64])):
        blob = data_mutations.bit_flipped(rng, blob)
    return blob


def zeroed(rng: random.Random, blob: bytes) -> bytes:
    at, size = rng.randrange(len(blob) or 1), rng.choice([4, 64, 4096])
    return (blob[:at] + bytes(size) + blob[at + size :])[: len(blob)]


def appended(rng: random.Random, blob: bytes) -> bytes:
    return blob + rng.choice([b"\0", b"x" * 100, blob])


def opcode_changed(rng: random.Random, pickled: bytes) -> bytes:
    at = rng.choice([place for _, _, place in pickletools.genops(pickled)])
    return pickled[:at] + ord(rng.choice(pickletools.opcodes).code).to_bytes(1, "big") + pickled[at + 1 :]


def number_changed(rng: random.Random, pickled: bytes) -> bytes:
    """A size, an offset, a setting, ..."""
    numbers = [
        (op, at) for op, _, at in pickletools.genops(pickled) if op.name in ("BININT", "BININT1", "BININT2", "BINFLOAT")
    ]
    op, at = rng.choice(numbers)
    size = {"BININT": 4, "BININT1": 1, "BININT2": 2, "BINFLOAT": 8}[op.name]
    other = b"J" + struct.pack("<i", rng.choice([0, -1, 1, 2, 1000, (1 << 31) - 1, -(1 << 31)]))
    return pickled[:at] + other + pickled[at + 1 + size :]


FILE_MUTATIONS = [
    data_mutations.bit_flipped, bits_flipped, data_mutations.byte_inserted, data_mutations.byte_deleted,
    data_mutations.span_deleted, data_mutations.span_doubled, data_mutations.truncated, zeroed, appended,
    member_dropped, member_twice, members_swapped, member_renamed, compressed, zeros_appended, empty_archive,
    declared_size, *map(member_changed, [data_mutations.bit_flipped, data_mutations.truncated, appended, zeroed]),
    *(member_changed(change, True) for change in (data_mutations.bit_flipped, opcode_changed, number_changed) * 2),
]  # fmt: skip


# Content -------------------------------------------------------------------------------------------------------------

State = dict[str, Any]
OTHERS = [None, 0, -1, 1.5, "x", "", [], {}, True, [1], {"a": 1}, float("nan"), {"__recbole_cafe__": "x"},
          {"__recbole_cafe__": "ndarray"}, {"__recbole_cafe__": "enum", "type": "InputType", "name": "x"},
          {"__recbole_cafe__": []}]  # fmt: skip


def places(part: Any) -> list[tuple[dict, Any]]:
    """Each dict of the content with each of its keys."""
    found = []
    if isinstance(part, dict):
        found += [(part, key) for key in part]
        found += [pair for value in part.values() for pair in places(value)]
    elif isinstance(part, (list, tuple)):
        found += [pair for value in part for pair in places(value)]
    return found


def place(rng: random.Random, state: State) -> tuple[dict, Any]:
    """Of the first level, of the config, or anywhere."""
    return rng.choice(rng.choice([[(state, key) for key in state], places(state["config"]), places(state)]))


def key_dropped(rng: random.Random, state: State) -> None:
    part, key = place(rng, state)
    del part[key]


def key_renamed(rng: random.Random, state: State) -> None:
    part, key = place(rng, state)
    part[f"{key}x"] = part.pop(key)


def other_value(rng: random.Random, state: State) -> None:
    part, key = place(rng, state)
    part[key] = rng.choice([*OTHERS, torch.zeros(2)])


def model_or_data(rng: random.Random, state: State) -> None:
    state["config"][rng.choice(["model", "dataset"])] = rng.choice(
        ["BPR", "SASRec", "CaFePlus", "cafe", "nothing", "../fz", "a b", ""]
    )


def weight_of(rng: random.Random, state: State) -> tuple[dict, Any]:
    """Of the model or, less often, of its mean or its optimiser."""
    of = state["state_dict"] if rng.random() < 0.6 else state
    return rng.choice([(part, key) for part, key in places(of) if isinstance(part[key], torch.Tensor)])


def other_shape(rng: random.Random, state: State) -> None:
    part, name = weight_of(rng, state)
    weight = part[name]
    part[name] = rng.choice(
        [
            weight[None],
            weight.flatten(),
            weight[:0] if weight.dim() else weight[None],
            torch.cat([weight.flatten()] * 2),
        ]
    )


def other_dtype(rng: random.Random, state: State) -> None:
    part, name = weight_of(rng, state)
    part[name] = part[name].to(rng.choice([torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64]))


def huge_view(rng: random.Random, state: State) -> None:
    """A few bytes that claim to be many."""
    part, name = weight_of(rng, state)
    part[name] = torch.zeros(1).expand(rng.choice([1 << 30, 1 << 40]))


def other_layout(rng: random.Random, state: State) -> None:
    part, name = weight_of(rng, state)
    part[name] = part[name].to_sparse() if rng.random() < 0.5 else part[name].to("meta")


def other_weights(rng: random.Random, state: State) -> None:
    part, name = weight_of(rng, state)
    weight = part[name].clone()
    weight.view(-1)[:1] = rng.choice([float("nan"), 1e30, 0.0]) if weight.is_floating_point() else 1
    part[name] = weight


STATE_MUTATIONS = [
    key_dropped, key_renamed, other_value, other_value, model_or_data, other_shape, other_dtype, huge_view,
    other_layout, other_weights,
]  # fmt: skip


# Case ----------------------------------------------------------------------------------------------------------------


def case(rng: random.Random, folder: Path, note: dict[str, Any]) -> str:
    blob = (BASE / FILE).read_bytes()
    original = torch.load(io.BytesIO(blob), weights_only=True)
    if rng.random() < 0.35:
        state, mutation = copy.deepcopy(original), rng.choice(STATE_MUTATIONS)
        mutation(rng, state)
        out = io.BytesIO()
        torch.save(state, out, pickle_protocol=2)
        blob = out.getvalue()
    else:
        mutation = rng.choice(FILE_MUTATIONS)
        blob = mutation(rng, blob)
    resumes = rng.random() < 0.4
    note["mutations"], note["input"] = [mutation.__name__], "resume" if resumes else "load"
    (folder / FILE).write_bytes(blob)
    make_trainer = fresh_trainer() if resumes else None
    try:
        if resumes:
            make_trainer.resume_checkpoint(str(folder / FILE))
        else:
            loaded = load_data_and_model(folder / FILE)[1]
    except Exception as error:
        clear_text(error, [FILE])
        return "clear error"
    model = make_trainer.model if resumes else loaded
    same("state_dict", model.state_dict(), original["state_dict"])
    if resumes:
        same("optimizer", make_trainer.optimizer.state_dict(), original["optimizer"])
        for name, found, wanted in (
            ("epoch", make_trainer.start_epoch, original["epoch"] + 1),
            ("best_valid_score", make_trainer.best_valid_score, original["best_valid_score"]),
            ("cur_step", make_trainer.cur_step, original["cur_step"]),
        ):
            check(found == wanted, f"{name}: {found}, not {wanted}")
    return "equal"


def fresh_trainer() -> Any:
    config = Config("CaFe", NAME, config_dict=settings() | {"epochs": 2})
    train_data = experiment.data_preparation(config, experiment.create_dataset(config))[0]
    model = config.model_class(config, train_data._dataset)
    return trainer_class(get_trainer(config["MODEL_TYPE"], config["model"]))(config, model)


def same(name: str, found: Any, wanted: Any) -> None:
    """To the last bit."""
    if isinstance(wanted, torch.Tensor):
        equal = isinstance(found, torch.Tensor) and found.dtype == wanted.dtype and torch.equal(found, wanted)
        check(equal, f"other numbers than were saved: {name}")
    elif isinstance(wanted, dict):
        check(isinstance(found, dict) and set(found) == set(wanted), f"other keys than were saved: {name}")
        for key, value in wanted.items():
            same(f"{name}.{key}", found[key], value)
    elif isinstance(wanted, (list, tuple)):
        check(len(found) == len(wanted), f"{name}: {short(found)}, not {short(wanted)}")
        for at, (one, other) in enumerate(zip(found, wanted, strict=True)):
            same(f"{name}[{at}]", one, other)
    else:
        check(found == wanted, f"{name}: {short(found)}, not {short(wanted)}")
