"""Nets small enough to compute by hand: float64, no dropout in eval mode, weights of the size of 1/2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recbole_cafe.config.props import props_dir, read_yaml
from recbole_cafe.config.signature import arguments_of
from recbole_cafe.data.facts import DataFacts, ItemIntents
from recbole_cafe.layers.packing import left_padded

EXACT = {"rtol": 0.0, "atol": 1e-10}  # float64
V, C, L = 20, 5, 6  # 19 items, 4 intents
USERS = torch.tensor([1, 2, 3, 4])  # of the four histories
NEXT = torch.tensor([2, 5, 8, 12])  # what follows them


def item2intent() -> Tensor:
    """Items 1..19 have the intents 1, 2, 3, 4, 1, ...; items 5 and 12 have none."""
    of = torch.arange(V) % (C - 1) + 1
    of[0], of[5], of[12] = 0, C, C
    return of


class Fixed(nn.Module):
    """Negatives that depend on the row alone, so that the same row has the same ones in any batch."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, key: Tensor, target: Tensor, k: int) -> Tensor:
        """[N, k]."""
        return 1 + (7 * key[:, None] + 3 * target[:, None] + torch.arange(k)) % (self.n - 1)


def histories() -> Tensor:
    """[4, L], of lengths 6, 3, 1, 4; items without intents among them, one item twice in a row."""
    return torch.tensor([[3, 5, 8, 1, 12, 19], [2, 9, 4, 0, 0, 0], [7, 0, 0, 0, 0, 0], [5, 12, 6, 6, 0, 0]])


class SmallFacts(DataFacts):
    """Facts of 19 items and 4 users whose negatives are the same in any batch, unless they are given."""

    def __init__(self, **facts: Any) -> None:
        given = {"n_items": V, "n_users": 5, "max_seq_length": L, "item2intent": item2intent(), "n_intents": C} | facts
        self.given = given
        super().__init__(
            n_items=given["n_items"], n_users=given["n_users"], max_seq_length=given["max_seq_length"],
            train_pairs=lambda: given["train_pairs"],
            intents=lambda: ItemIntents(given["item2intent"], given["n_intents"]),
        )  # fmt: skip

    def item_negatives(self, loss_type: str) -> nn.Module | None:
        return self.given.get("item_negatives", Fixed(self.n_items))

    def intent_negatives(self, loss_type: str) -> nn.Module | None:
        return self.given.get("intent_negatives", Fixed(self.n_intents))


FACTS = frozenset(
    ["n_items", "n_users", "max_seq_length", "item2intent", "n_intents", "train_pairs", "item_negatives",
     "intent_negatives"]
)  # fmt: skip


def from_yaml(net: Callable[..., nn.Module], model: str, **settings: Any) -> Any:
    """The net of a model as its YAML has it, with other settings and, among them, facts of the data."""
    path = props_dir() / "model" / f"{model}.yaml"
    facts = {key: value for key, value in settings.items() if key in FACTS}
    keys = read_yaml(props_dir() / "overall.yaml") | read_yaml(path)
    keys |= {key: value for key, value in settings.items() if key not in FACTS}
    return net(data=SmallFacts(**facts), **arguments_of(net, keys, path))


def small(net: Callable[..., nn.Module], model: str, **settings: Any) -> Any:
    """:func:`from_yaml` in float64 and eval mode, with weights of the size of 1/2."""
    torch.manual_seed(11)
    built = from_yaml(net, model, **{"hidden_size": 8, "inner_size": 12, **settings}).double().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.5)
        for part in built.modules():
            if isinstance(part, nn.Embedding) and part.padding_idx == 0:
                part.weight[0] = 0.0
    return built


def share(source: nn.Module, target: nn.Module) -> None:
    """Give target the weights of source that it has too."""
    target.load_state_dict({k: v for k, v in source.state_dict().items() if k in target.state_dict()})


def layer_norm(x: Tensor, part: nn.LayerNorm) -> Tensor:
    """Written out."""
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).pow(2).mean(-1, keepdim=True) + part.eps).sqrt() * part.weight + part.bias


def scores(made: Any, seq: Tensor | None = None) -> Tensor:
    """[B, V], of a net that reads no user."""
    return made.scores(made.query(histories() if seq is None else seq))


def hidden_intents_do_not_matter(made: Any) -> None:
    """Asserts that no logit depends on the intents of hidden items, and that other intents do matter."""
    rows = torch.tensor([[3, V, 8, 1, V, 19]])  # V hides items 5 and 12
    before = made(rows)[0]
    buffer = made.intents.item2intent
    kept = buffer.clone()
    buffer[[5, 12]] = torch.tensor([1, 2])
    torch.testing.assert_close(made(rows)[0], before, **EXACT)
    buffer[8] = 3 - buffer[8] % 2
    assert (made(rows)[0] - before).abs().max() > 1e-3
    buffer.copy_(kept)


def all_positions(made: Any, seq: Tensor) -> Tensor:
    """[B, L, D]: the last block at every position, on left-padded rows, of a net whose states know the whole row."""
    items = left_padded(seq, made.max_seq_length)
    x: Tensor = made.enter(items)
    for block in made.blocks:
        x = block(x, items > 0, newest=False)
    return x
