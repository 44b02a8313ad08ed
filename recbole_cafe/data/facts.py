"""What the data know and no config says: the one list of it, each fact made when somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

from torch import Tensor, nn

from recbole_cafe.layers.sampling import ExclusiveSampler, PopularitySampler


@dataclass(frozen=True)
class ItemIntents:
    """The intent of every item.

    Attributes:
        item2intent: [V]; 0 for padding, 1..C-1 an intent, C for an item without one.
        n_intents: C, padding included.
        n_without: how many items have none.
    """

    item2intent: Tensor
    n_intents: int
    n_without: int = 0


class DataFacts:
    """The facts of a train split.

    Args:
        n_items: V, padding included.
        n_users: users, padding included.
        max_seq_length: L.
        train_pairs: gives the users and the items of the train interactions, [P] each, in the order of users, then
            time.
        intents: gives the intents of the items.
    """

    def __init__(
        self,
        *,
        n_items: int,
        n_users: int,
        max_seq_length: int,
        train_pairs: Callable[[], tuple[Tensor, Tensor]],
        intents: Callable[[], ItemIntents],
    ) -> None:
        self.n_items, self.n_users, self.max_seq_length = n_items, n_users, max_seq_length
        self._train_pairs, self._intents = train_pairs, intents

    @cached_property
    def train_pairs(self) -> tuple[Tensor, Tensor]:
        """Users and items of the train interactions, [P] each, in the order of users, then time."""
        return self._train_pairs()

    @cached_property
    def intents(self) -> ItemIntents:
        """The intents of the items."""
        return self._intents()

    def release(self) -> None:
        """Forget what only building a net needs: the train pairs, and the data set behind the facts.

        A model keeps its facts, and a copy of it must not copy the data.
        """
        self.__dict__.pop("train_pairs", None)
        self._train_pairs, self._intents = _released, _released

    @property
    def item2intent(self) -> Tensor:
        """[V], see :class:`ItemIntents`."""
        return self.intents.item2intent

    @property
    def n_intents(self) -> int:
        """C, padding included."""
        return self.intents.n_intents

    def item_negatives(self, loss_type: str) -> nn.Module | None:
        """What draws the negative items of a loss; None for a softmax over all of them, which asks for no pairs."""
        if loss_type == "CE":
            return None
        return _sampler(loss_type, *self.train_pairs, n_users=self.n_users, n=self.n_items)

    def intent_negatives(self, loss_type: str) -> nn.Module | None:
        """The same for intents. "No intent" is neither drawn nor avoided."""
        if loss_type == "CE":
            return None
        users, items = self.train_pairs
        intents = self.item2intent[items]
        intents = intents.where(intents < self.n_intents, 0)
        return _sampler(loss_type, users, intents, n_users=self.n_users, n=self.n_intents)


def _sampler(loss_type: str, users: Tensor, ids: Tensor, *, n_users: int, n: int) -> nn.Module:
    return PopularitySampler(ids, n=n) if loss_type == "SSM" else ExclusiveSampler(users, ids, n_keys=n_users, n=n)


def _released() -> NoReturn:
    raise RuntimeError("the facts of the data have been released: they can be read while a net is built")
