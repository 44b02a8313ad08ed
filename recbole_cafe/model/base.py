"""RecBole's contract, written once: how a net (torch only) becomes a RecBole SequentialRecommender.

A model file declares a net and a face::

    class CaFe(NetRecommender):
        net = CaFeNet

The net's keyword-only constructor is the list of the model's config keys; what the data and the host know
(`n_items`, `max_seq_length`, `item2intent`, ...) is added here when the signature asks for it. `reads` and `layouts`
say what a net's `last` is given and on which rows the model can be trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_cafe.config.props import model_yaml
from recbole_cafe.config.signature import arguments_of
from recbole_cafe.data.intents import ItemIntents, item_intents
from recbole_cafe.data.sequences import SequenceDataset
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.sampling import ExclusiveSampler, PopularitySampler


class NetRecommender(SequentialRecommender):
    """A RecBole sequential recommender around a net.

    The net offers ``loss(item_seq, target, user)``, ``last(*reads) -> (state, terms)`` and
    ``scores(state, terms, items=None, intents=None)``; shapes as in :class:`recbole_cafe.model.cafe.CaFeNet`.

    Attributes:
        reads: what `last` is given, of ``item_seq`` [B, L] and ``user`` [B].
        layouts: values of `train_layout` the model can be trained under.
        learns: whether there is something to train. A model of counts is complete when it is built.

    Args:
        config: RecBole's Config.
        dataset: the train split, a :class:`SequenceDataset`.

    Raises:
        TypeError: the dataset was not built by recbole_cafe (its train rows would be RecBole's prefix copies).
        ConfigError: a key of the net is missing from, or unknown to, the model's YAML; or a train_layout that does not
            suit the model.
    """

    input_type = InputType.POINTWISE
    net: Callable[..., nn.Module]
    reads: tuple[str, ...] = ("item_seq",)
    layouts: tuple[str, ...] = ("all", "last")
    learns: bool = True

    def __init__(self, config: Any, dataset: SequenceDataset) -> None:
        super().__init__(config, dataset)
        if not isinstance(dataset, SequenceDataset):
            raise TypeError(
                f"{type(self).__name__} needs a recbole_cafe SequenceDataset, got {type(dataset).__name__}: build it "
                f"with recbole_cafe.run or with RecBole's create_dataset after `import recbole_cafe`"
            )
        self.train_layout = config["train_layout"]
        if self.train_layout not in self.layouts:
            raise ConfigError(
                f"train_layout={self.train_layout} does not suit {type(self).__name__}, which trains under "
                f"{', '.join(self.layouts)}"
            )
        self._intents: ItemIntents | None = None
        provided = {
            "n_items": lambda: self.n_items,
            "n_users": lambda: dataset.user_num,
            "max_seq_length": lambda: self.max_seq_length,
            "item2intent": lambda: self._item_intents(config, dataset).item2intent,
            "n_intents": lambda: self._item_intents(config, dataset).n_intents,
            "item_negatives": lambda: self._item_negatives(config, dataset),
            "intent_negatives": lambda: self._intent_negatives(config, dataset),
            "train_pairs": dataset.user_items,
        }
        self.network = type(self).net(**arguments_of(type(self).net, config, provided, source=model_yaml(type(self))))

    # RecBole's three calls -----------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Training loss of a batch, scalar."""
        item_seq = interaction[self.ITEM_SEQ]
        length = interaction[self.ITEM_SEQ_LEN]
        target = next_items(item_seq, length, interaction[self.ITEM_ID], self.train_layout)
        return self.network.loss(item_seq, target, interaction[self.USER_ID])

    @torch.no_grad()
    def predict(self, interaction: Interaction) -> Tensor:
        """Score of one item per row. Returns [B]."""
        return self.score_candidates(interaction, interaction[self.ITEM_ID][:, None])[:, 0]

    @torch.no_grad()
    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items. Returns [B, V]; column 0 (padding) is meaningless, as in RecBole."""
        return self.network.scores(*self.encode(interaction))

    @torch.no_grad()
    def score_candidates(self, interaction: Interaction, items: Tensor, intents: Tensor | None = None) -> Tensor:
        """Scores of K candidates per row, each history encoded once.

        Args:
            items: [B, K] item ids. intents: [B, K] to use instead of the items' own (``authors100`` only).

        Returns:
            [B, K].
        """
        return self.network.scores(*self.encode(interaction), items, intents)

    @torch.no_grad()
    def encode(self, interaction: Interaction) -> tuple[Tensor, Tensor | None]:
        """What the histories of a batch say: the net's `last`."""
        fields = {"item_seq": self.ITEM_SEQ, "user": self.USER_ID}
        return self.network.last(*(interaction[fields[name]] for name in self.reads))

    # What the data know --------------------------------------------------------------------------------------------

    def _item_intents(self, config: Any, dataset: SequenceDataset) -> ItemIntents:
        if self._intents is None:
            self._intents = item_intents(config, dataset)
        return self._intents

    def _item_negatives(self, config: Any, dataset: SequenceDataset) -> nn.Module | None:
        return _negatives(config["loss_type"], *dataset.user_items(), n_users=dataset.user_num, n=self.n_items)

    def _intent_negatives(self, config: Any, dataset: SequenceDataset) -> nn.Module | None:
        if not config["intent_loss"]:
            return None
        intents = self._item_intents(config, dataset)
        users, items = dataset.user_items()
        theirs = intents.item2intent[items]
        theirs = theirs.where(theirs < intents.n_intents, 0)  # "no intent" is no id to draw or to avoid
        return _negatives(config["loss_type"], users, theirs, n_users=dataset.user_num, n=intents.n_intents)


def _negatives(loss_type: str, users: Tensor, ids: Tensor, *, n_users: int, n: int) -> nn.Module | None:
    """What draws the negatives of a loss; nothing does for a softmax over all ids."""
    if loss_type == "CE":
        return None
    return PopularitySampler(ids, n=n) if loss_type == "SSM" else ExclusiveSampler(users, ids, n_keys=n_users, n=n)


def next_items(item_seq: Tensor, length: Tensor, item: Tensor, train_layout: str) -> Tensor:
    """The item to predict at each position.

    Args:
        item_seq: [B, L]. length: [B]. item: [B] the item after the last position.
        train_layout: ``all``, a target at every position, or ``last``, RecBole's prefix rows.

    Returns:
        [B, L], 0 where there is no target.
    """
    target = torch.zeros_like(item_seq)
    if train_layout == "all":
        target[:, :-1] = item_seq[:, 1:]
    target[torch.arange(len(item_seq), device=item_seq.device), length - 1] = item
    return target
