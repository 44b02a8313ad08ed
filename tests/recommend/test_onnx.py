"""The network of a bundle as an ONNX program."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from recommend.made import LENGTH, bundle_of

from recbole_cafe.errors import ConfigError
from recbole_cafe.ranking.query import Query
from recbole_cafe.recommend.bundle import Bundle
from recbole_cafe.recommend.onnx import write_encoder
from recbole_cafe.recommend.recommender import Recommender

INTENT = {f"i{n}": f"c{n % 3}" for n in range(9)}
WALKS = {f"u{n}": [f"i{(n * 3 + step) % 9}" for step in range(5)] for n in range(9)}


def encode(path: Path, histories: list[list[int]]) -> dict[str, torch.Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = np.array([history + [0] * (LENGTH - len(history)) for history in histories], dtype=np.int64)
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(x) for name, x in zip(names, session.run(names, {"history": rows}), strict=True)}


@pytest.fixture
def cafe() -> Bundle:
    return bundle_of("CaFe", WALKS, INTENT)


def test_what_the_program_says_ranks_as_the_bundle_recommends(cafe: Bundle, tmp_path: Path) -> None:
    assert write_encoder(cafe, tmp_path / "encoder.onnx") == ["vector", "terms"]
    histories = [[1, 5, 3], [2], [9, 8, 7, 6, 5, 4]]
    said = encode(tmp_path / "encoder.onnx", histories)
    items, scores = cafe.catalogue.top(Query(said["vector"], said["terms"]), 9)
    tokens = [[f"i{item - 1}" for item in history] for history in histories]
    listed = Recommender(cafe).recommend(tokens, k=9, exclude_seen=False)
    assert listed["item"].to_pylist() == [f"i{item - 1}" for item in items.flatten().tolist()]
    assert np.allclose(listed["score"].to_numpy(), scores.flatten().numpy(), atol=1e-5)


@pytest.mark.parametrize("model", ["CaFePlus", "LOCKER"])
def test_the_program_takes_any_number_of_histories(model: str, tmp_path: Path) -> None:
    bundle = bundle_of(model, WALKS, INTENT)
    write_encoder(bundle, tmp_path / "encoder.onnx")
    for n in (1, 7):
        histories = [[1 + (row + step) % 9 for step in range(1 + row % LENGTH)] for row in range(n)]
        rows = torch.tensor([history + [0] * (LENGTH - len(history)) for history in histories])
        with torch.inference_mode():
            wanted = bundle.net.encoded(rows)
        for name, got in encode(tmp_path / "encoder.onnx", histories).items():
            assert torch.allclose(got, wanted[name], atol=1e-5), (name, n)


@pytest.mark.parametrize(
    ("model", "reason"), [("IntentBackoff", "has no network"), ("HCRNN", "HCRNN cannot be written as ONNX")]
)
def test_what_cannot_be_written_is_refused(
    model: str, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=reason):
        write_encoder(bundle_of(model, WALKS, INTENT), tmp_path / "encoder.onnx")
    assert not list(tmp_path.iterdir())
    assert not "".join(capfd.readouterr())
