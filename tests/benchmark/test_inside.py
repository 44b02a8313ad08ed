"""recbole_cafe.benchmark.inside: mean attention and item vectors of a trained model."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy

from recbole_cafe.benchmark import inside
from recbole_cafe.cli.main import main
from recbole_cafe.experiment import run
from recbole_cafe.host.reload import load_data_and_model

SMALL = {"MAX_ITEM_LIST_LENGTH": 8, "hidden_size": 16, "inner_size": 16, "gpu_id": "", "epochs": 1}


@pytest.fixture(scope="module")
def trained(toy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A checkpoint of a model on the toy data."""
    folder = str(tmp_path_factory.mktemp("trained"))
    made: dict[str, Path] = {}

    def train(model: str, **keys: Any) -> Path:
        name = f"{model} {keys}"
        if name not in made:
            settings = {**SMALL, "data_path": str(toy_path), "checkpoint_dir": folder, "eval_mode": ["full"], **keys}
            made[name] = Path(run(model, toy.NAME, config_dict=settings).checkpoint)
        return made[name]

    return train


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_sums_from_the_newest_by_hand() -> None:
    """Two rows, of three and of one position, with what their queries give to their keys."""
    weights = torch.tensor([[[1.0, 0, 0], [0.4, 0.6, 0], [0.2, 0.3, 0.5]], [[1.0, 0, 0], [9, 9, 9], [9, 9, 9]]])
    total, users = inside._from_the_newest(weights, torch.tensor([3, 1]), 4)
    assert total[0] == pytest.approx([0.5 + 1.0, 0.3, 0.2, 0])  # newest to newest, to the one before, ...
    assert total[1] == pytest.approx([0, 0.6, 0.4, 0])
    assert total[2] == pytest.approx([0, 0, 1, 0])
    assert users.tolist() == [[2, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("CaFe", {}),
        ("CaFe", {"theta_source": "v", "residual": "query", "n_local_heads": 2, "n_heads": 2}),
        ("CaFePlus", {}),
    ],
)
def test_the_weights_are_those_that_the_model_uses(
    model: str, keys: dict[str, Any], trained: Callable[..., Path]
) -> None:
    """Weights times values, through the output projection, are what the first attention gives."""
    _, face, _, _, _, test = load_data_and_model(trained(model, **keys))
    net = face.network.cpu().eval()
    history = test._dataset[torch.arange(40)][face.ITEM_SEQ].cpu()
    packing, found = net.first_attention(history)
    items = packing.pack(history)
    embedded = {"items": net.item_embedding(items), "intents": net.intent_embedding(net.item2intent[items])}
    assert set(found) == set(embedded)
    for tower, encoder in (("items", net.item_encoder), ("intents", net.intent_encoder)):
        block, given = encoder.blocks[0], {}

        def keep(_module: Any, arguments: Any, options: Any, output: Any, given: dict[str, Any] = given) -> None:
            given.update(x=arguments[0], output=output)

        hook = block.attention.register_forward_hook(keep, with_kwargs=True)
        with torch.no_grad():
            encoder(embedded[tower], packing)
            hook.remove()
            value = block.attention.value(given["x"])
            mixed = []
            for at, weights in zip(packing.groups, found[tower], strict=True):
                b, length = at.shape
                heads = value[at].view(b, length, block.attention.n_heads, -1).transpose(1, 2)
                mixed.append((weights @ heads).transpose(1, 2).reshape(b * length, -1))
            again = block.attention.output(torch.cat(mixed)[packing.back])
        torch.testing.assert_close(again, given["output"], atol=1e-5, rtol=1e-4)


def test_attention_of_a_checkpoint(trained: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = trained("CaFe")
    assert main(["figures", "--attention", str(path)]) == 0
    written = [path.with_name(f"{path.stem}.attention.{end}") for end in ("png", "svg", "csv")]
    assert capsys.readouterr().out.splitlines()[-3:] == list(map(str, written))
    lines = rows(written[2])
    kinds = {line["heads"] for line in lines}
    assert {"items, local heads", "intents"} <= kinds
    newest = [line for line in lines if line["query"] == "0" and line["heads"] == "intents"]
    # each key's mean is over the users who have it; all have the newest
    total = sum(float(line["weight"]) * int(line["users"]) for line in newest) / int(newest[0]["users"])
    assert total == pytest.approx(1.0, abs=1e-5)


def test_items_of_a_checkpoint(trained: Callable[..., Path]) -> None:
    path = trained("CaFe")
    assert main(["figures", "--items", str(path)]) == 0
    lines = rows(path.with_name(f"{path.stem}.items.csv"))
    assert 2 <= len({line["intent"] for line in lines}) <= inside.N_INTENTS
    assert len({line["nmi"] for line in lines}) == 1
    assert all(int(line["interactions"]) > 0 for line in lines)


def test_which_items_are_drawn() -> None:
    """Intents 1 (5 interactions) and 2 (3); item 4 was never seen, item 5 has no intent (3 = C)."""
    seen, intent = np.array([0, 4, 1, 3, 0, 9]), np.array([0, 1, 1, 2, 2, 3])
    items, intents = inside.frequent_items(seen, intent, 3)
    assert items.tolist() == [1, 2, 3]
    assert intents.tolist() == [1, 2]


def test_the_mutual_information_of_clusters() -> None:
    """Two tight bunches in opposite directions: k-means finds the labels; shuffled labels it does not."""
    noise = 0.01 * np.random.default_rng(1).normal(size=(60, 3))
    labels = np.repeat([1, 2], 30)
    vectors = np.where(labels[:, None] == 1, 1.0, -1.0) * np.array([1.0, 0, 0]) + noise
    places, nmi, chance = inside.project(vectors, labels)
    assert places.shape == (60, 2)
    assert nmi == pytest.approx(1.0)
    assert chance < 0.2


@pytest.mark.parametrize(
    ("model", "keys", "option", "message"),
    [
        ("SASRec", {}, "--items", "model=SASRec: these figures are of CaFe and CaFePlus"),
        ("LOCKER", {}, "--attention", "model=LOCKER: these figures are of CaFe and CaFePlus"),
        ("CaFePlus", {"item_net": False}, "--items", "item_net=False: the items of this CaFePlus have no vectors"),
        ("CaFe", {"final": True}, "--attention", "trained on all interactions: there are no test users"),
    ],
)
def test_refusals(model: str, keys: dict[str, Any], option: str, message: str, trained: Callable[..., Path],
                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert main(["figures", option, str(trained(model, **keys))]) == 1
    assert message in capsys.readouterr().err
