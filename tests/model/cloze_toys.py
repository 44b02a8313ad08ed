"""Small cloze nets in float64 with known intents, for the tests of the models that hide items."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recbole_cafe.config import props_dir, read_yaml

EXACT = {"rtol": 0.0, "atol": 1e-10}
V, C, L = 20, 5, 6  # 19 items, 4 intents
NONE = C  # intent id of an item without one


def item2intent() -> Tensor:
    """Items 1..19 have the intents 1, 2, 3, 4, 1, ...; items 5 and 12 have none."""
    of = torch.arange(V) % (C - 1) + 1
    of[0], of[5], of[12] = 0, NONE, NONE
    return of


def small(net: type[nn.Module], yaml: str, **settings: Any) -> Any:
    """A net as its YAML has it, small, eval mode, weights of the size of 1/2."""
    arguments = read_yaml(props_dir() / "model" / f"{yaml}.yaml")
    del arguments["MAX_ITEM_LIST_LENGTH"]
    arguments |= {"hidden_size": 8, "inner_size": 12, "n_items": V, "max_seq_length": L}
    if "item2intent" in net.__init__.__annotations__:
        arguments |= {"item2intent": item2intent(), "n_intents": C}
    if "item_negatives" in net.__init__.__annotations__:
        arguments["item_negatives"] = None
    torch.manual_seed(11)
    made = net(**arguments | settings).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
        for part in made.modules():
            if isinstance(part, nn.Embedding) and part.padding_idx == 0:
                part.weight[0] = 0.0
    return made


def histories() -> Tensor:
    """[4, L], of lengths 6, 3, 1, 4; items without intents among them."""
    return torch.tensor([[3, 5, 8, 1, 12, 19], [2, 9, 4, 0, 0, 0], [7, 0, 0, 0, 0, 0], [5, 12, 6, 6, 0, 0]])


def scores(made: Any, seq: Tensor | None = None) -> Tensor:
    """[B, V]."""
    return made.scores(*made.last(histories() if seq is None else seq))


def share(source: nn.Module, target: nn.Module) -> None:
    """Give target the weights of source that it has too."""
    target.load_state_dict({k: v for k, v in source.state_dict().items() if k in target.state_dict()}, strict=False)


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
