"""recbole_cafe.benchmark.inside: mean attention and item vectors of a trained model."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
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
    kind = inside.MeanAttention(*np.zeros((3, 4, 4)))
    inside._add(kind, weights[:, None].double(), torch.tensor([3, 1]))
    assert kind.total[0] == pytest.approx([0.5 + 1.0, 0.3, 0.2, 0])  # newest to newest, to the one before, ...
    assert kind.total[1] == pytest.approx([0, 0.6, 0.4, 0])
    assert kind.total[2] == pytest.approx([0, 0, 1, 0])
    assert kind.users.tolist() == [[2, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    third = 1 / 3
    assert kind.even == pytest.approx(
        np.array([[third + 1, third, third, 0], [0, 0.5, 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    )
    # the row of one position has nothing to choose from
    surprise = -(0.2 * math.log(0.2) + 0.3 * math.log(0.3) + 0.5 * math.log(0.5)) / math.log(3)
    assert (kind.entropy, kind.long) == (pytest.approx(surprise), 1)


def test_entropy_is_of_each_head() -> None:
    """Two heads that each look at one position are sharp, though their mean is even."""
    kind = inside.MeanAttention(*np.zeros((3, 2, 2)))
    weights = torch.tensor([[[[1.0, 0], [1, 0]], [[1, 0], [0, 1]]]]).double()  # [1, 2, 2, 2]
    inside._add(kind, weights, torch.tensor([2]))
    assert kind.entropy == 0 and kind.mean[0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("CaFe", {}),
        ("CaFe", {"theta_source": "v", "residual": "query", "n_local_heads": 2, "n_heads": 2}),
        ("CaFePlus", {}),
        ("SAIR", {}),
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
    if model == "SAIR":
        towers = {"items with their intents": (net.encoder, net.embedded(items))}
    else:
        towers = {"items": (net.item_encoder, net.item_embedding(items)),
                  "intents": (net.intent_encoder, net.intent_embedding(net.item2intent[items]))}  # fmt: skip
    assert {kind.partition(",")[0] for kind in found} == set(towers)
    for tower, (encoder, embedded) in towers.items():
        kinds = [groups for kind, groups in found.items() if kind.partition(",")[0] == tower]
        groups = [torch.cat(heads, 1) for heads in zip(*kinds, strict=True)]  # the local heads are the last ones
        block, given = encoder.blocks[0], {}

        def keep(_module: Any, arguments: Any, options: Any, output: Any, given: dict[str, Any] = given) -> None:
            given.update(x=arguments[0], output=output)

        hook = block.attention.register_forward_hook(keep, with_kwargs=True)
        with torch.no_grad():
            encoder(embedded, packing)
            hook.remove()
            value = block.attention.value(given["x"])
            mixed = []
            for at, weights in zip(packing.groups, groups, strict=True):
                b, length = at.shape
                heads = value[at].view(b, length, block.attention.n_heads, -1).transpose(1, 2)
                mixed.append((weights @ heads).transpose(1, 2).reshape(b * length, -1))
            again = block.attention.output(torch.cat(mixed)[packing.back])
        torch.testing.assert_close(again, given["output"], atol=1e-5, rtol=1e-4)


def test_attention_of_a_checkpoint(trained: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = trained("CaFe")
    assert main(["figures", "--attention", str(path)]) == 0
    written = [path.with_name(f"{path.stem}.attention.{end}") for end in ("png", "svg", "csv", "json")]
    assert capsys.readouterr().out.splitlines()[-4:] == list(map(str, written))
    lines = rows(written[2])
    kinds = {line["heads"] for line in lines}
    assert {"items, local heads", "intents"} <= kinds
    newest = [line for line in lines if line["query"] == "0" and line["heads"] == "intents"]
    # each key's mean is over the users who have it; all have the newest
    total = sum(float(line["weight"]) * int(line["users"]) for line in newest) / int(newest[0]["users"])
    assert total == pytest.approx(1.0, abs=1e-5)
    (facts,) = json.loads(written[3].read_text())["rows"]
    assert (facts["model"], facts["dataset"], set(facts["heads"])) == ("CaFe", toy.NAME, kinds)
    said = facts["heads"]["intents"]
    assert said["newest"] == pytest.approx([float(line["weight"]) for line in newest])
    assert 0 < said["entropy"] <= 1
    even = sum(e * n for e, n in zip(said["even"], said["users"], strict=True)) / said["users"][0]
    assert even == pytest.approx(1.0)


def test_several_checkpoints_share_a_picture(trained: Callable[..., Path]) -> None:
    paths = [trained("SAIR"), trained("CaFe")]
    assert main(["figures", "--attention", *map(str, paths)]) == 0
    facts = json.loads(paths[0].with_name(f"{paths[0].stem}.attention.json").read_text())["rows"]
    assert [(one["model"], len(one["heads"])) for one in facts] == [("SAIR", 1), ("CaFe", 3)]


def test_items_of_a_checkpoint(trained: Callable[..., Path]) -> None:
    path = trained("CaFe")
    assert main(["figures", "--items", str(path)]) == 0
    lines = rows(path.with_name(f"{path.stem}.items.csv"))
    assert 2 <= len({line["intent"] for line in lines}) <= inside.N_INTENTS
    facts = json.loads(path.with_name(f"{path.stem}.items.json").read_text())
    assert 0 <= facts["nmi"] <= 1 and facts["items"] == len(lines)
    assert facts["intents"] == Counter(line["intent"] for line in lines)
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
        ("SASRec", {}, "--items", "model=SASRec: these figures are of CaFe, CaFePlus and SAIR"),
        ("LOCKER", {}, "--attention", "model=LOCKER: these figures are of CaFe, CaFePlus and SAIR"),
        ("CaFePlus", {"item_net": False}, "--items", "item_net=False: the items of this CaFePlus have no vectors"),
        ("CaFe", {"final": True}, "--attention", "trained on all interactions: there are no test users"),
    ],
)
def test_refusals(model: str, keys: dict[str, Any], option: str, message: str, trained: Callable[..., Path],
                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert main(["figures", option, str(trained(model, **keys))]) == 1
    assert message in capsys.readouterr().err
