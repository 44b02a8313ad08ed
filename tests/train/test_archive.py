"""Seals on checkpoint files."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_cafe.train import checkpoint
from recbole_cafe.train.archive import DamagedError, verify
from recbole_cafe.train.checkpoint import CheckpointError

STATE = {"state_dict": {"a": torch.arange(3000.0), "b": torch.arange(5)}, "epoch": 3, "config": {"model": "CaFe"}}


def same(state: dict[str, Any]) -> bool:
    return (
        all(torch.equal(state["state_dict"][name], value) for name, value in STATE["state_dict"].items())
        and state["epoch"] == 3
        and state["config"] == STATE["config"]
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "a.pth", STATE)
    return tmp_path / "a.pth"


def unsealed(file: Path) -> Path:
    """As RecBole or an earlier version wrote it."""
    torch.save(STATE, file)
    return file


def test_torch_alone_reads_a_sealed_file(file: Path) -> None:
    assert verify(file)
    assert same(torch.load(file, weights_only=True))
    assert same(torch.load(file, weights_only=True, mmap=True))
    assert not verify(unsealed(file))
    assert same(checkpoint.load(file))


@pytest.mark.parametrize("sealed", [True, False])
def test_one_flipped_bit_is_found_or_changes_nothing(file: Path, sealed: bool) -> None:
    whole = (file if sealed else unsealed(file)).read_bytes()
    rng, refused = random.Random(0), 0
    for _ in range(200):
        place = rng.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            state = checkpoint.load(file)
        except CheckpointError as error:
            refused += str(file) in str(error)
        else:
            assert same(state)
    # a seal that is not recognised any more leaves zip's checksums, which do not watch the padding between parts
    assert refused > (190 if sealed else 150)


def test_a_bit_in_a_weight_is_named_as_damage(file: Path) -> None:
    whole = file.read_bytes()
    at = whole.index(torch.arange(3000.0).numpy().tobytes())
    file.write_bytes(whole[: at + 7] + bytes([whole[at + 7] ^ 0x40]) + whole[at + 8 :])
    assert torch.load(file, weights_only=True)["state_dict"]["a"][1] > 1e18  # torch does not look
    with pytest.raises(CheckpointError, match=r"a\.pth is damaged: its sha256"):
        checkpoint.load(file)


@pytest.mark.parametrize("size", [0, 1, 50, 1000, -1, -20, -100])
def test_only_the_beginning_of_a_file_is_refused(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        checkpoint.load(file)


def rewritten(file: Path, **how: Any) -> None:
    with zipfile.ZipFile(file) as archive:
        parts = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w", **how) as archive:
        for name, content in parts:
            archive.writestr(name, content)


def test_a_compressed_part_is_refused_before_it_is_unpacked(file: Path) -> None:
    rewritten(file, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DamagedError, match=r"data\.pkl is compressed"):
        verify(file)
    with pytest.raises(CheckpointError, match="compressed"):
        checkpoint.load(file)


def test_a_part_that_is_there_twice_is_refused(file: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(unsealed(file), "a") as archive:
        archive.writestr("a/data/0", b"\0" * 12000)
    with pytest.raises(CheckpointError, match="twice"):
        checkpoint.load(file)


def test_a_file_of_this_version_without_its_digest_was_changed(file: Path) -> None:
    """Those of RecBole and of earlier versions come without one."""
    torch.save({**STATE, "random": []}, file)
    with pytest.raises(CheckpointError, match="has lost its digest"):
        checkpoint.load(file)
    checkpoint.save(file, {**STATE, "random": []})
    assert same(checkpoint.load(file))


def test_little_in_a_file_does_not_become_much_in_memory(file: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1).expand(10**9, 10)}}, file)
    with pytest.raises(CheckpointError, match=r"a\.pth: a tensor of shape \(1000000000, 10\)"):
        checkpoint.load(file)
    bomb: list[Any] = [0]
    for _ in range(60):
        bomb = [bomb, bomb]
    torch.save({"config": bomb}, file)
    with pytest.raises(CheckpointError, match=r"a\.pth: its parts name one another"):
        checkpoint.load(file)


def test_a_tensor_that_shows_one_number_many_times_is_kept_as_many(file: Path) -> None:
    checkpoint.save(file, {"state_dict": {"a": torch.ones(1).expand(3, 2)}})
    assert torch.equal(checkpoint.load(file)["state_dict"]["a"], torch.ones(3, 2))
