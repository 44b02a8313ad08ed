"""RecBole's contract, written once: how a net (torch only) becomes a RecBole SequentialRecommender.

Our own models' faces are made of their nets in recbole_cafe.model.faces; a user's model declares its own::

    class Mine(NetRecommender):
        net = MyNet

The net's keyword-only constructor is the list of the model's config keys (recbole_cafe.config.signature); what the data
know is one object, `data`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from recbole_cafe.config.props import model_yaml
from recbole_cafe.config.signature import HasNet, arguments_of
from recbole_cafe.data.batch import Batch
from recbole_cafe.data.facts import DataFacts, ItemIntents
from recbole_cafe.data.intents import item_intents
from recbole_cafe.data.sequences import TARGET_LIST, NetDataset
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.draws import Draws, current, drawing
from recbole_cafe.layers.sharded import Shard, sharded_tables, tables_in_shards
from recbole_cafe.model.net import Net, Ranking
from recbole_cafe.ranking.query import Query

SHARE_OF_ADAM = 12  # bytes of a number of a table, with both its moments
SHARDED_FROM = 2**30  # bytes of a table with its moments, from which on several processes hold it in parts


class NetRecommender(SequentialRecommender, HasNet):
    """A RecBole sequential recommender around a net.

    Attributes:
        net: the net's class.
        network: the net.
        facts: what the data know.

    Args:
        config: RecBole's Config.
        dataset: the train split, a :class:`NetDataset`.

    Raises:
        TypeError: the dataset was not built by recbole_cafe (its train rows would be RecBole's prefix copies).
        ConfigError: a key of the net is missing from, or unknown to, the model's YAML; or a train_layout that does not
            suit the model.
    """

    input_type = InputType.POINTWISE
    net: type[Net]
    scores_candidates = True  # without scoring all other items

    def __init__(self, config: Any, dataset: NetDataset) -> None:
        super().__init__(config, dataset)
        if not isinstance(dataset, NetDataset):
            raise TypeError(
                f"{type(self).__name__} needs a recbole_cafe NetDataset, got {type(dataset).__name__}: build it "
                f"with recbole_cafe.run or with RecBole's create_dataset after `import recbole_cafe`"
            )
        if config["train_layout"] not in self.net.layouts:
            raise ConfigError(
                f"train_layout={config['train_layout']} does not suit {type(self).__name__}, which trains under "
                f"{', '.join(self.net.layouts)}"
            )
        self.facts = DataFacts(
            n_items=self.n_items,
            n_users=dataset.user_num,
            max_seq_length=self.max_seq_length,
            train_pairs=dataset.user_items,
            intents=lambda: item_intents(config, dataset),
        )
        arguments = arguments_of(self.net, config, model_yaml(type(self)))
        with tables_in_shards(self._shard(config)):
            self.network: Net = self.net(data=self.facts, **arguments)
        self.facts.release()
        sharded = sharded_tables(self)
        if config["shard_tables"] is True and not config["single_spec"] and not sharded:
            raise ConfigError(
                f"shard_tables=True: the item table of {type(self).__name__} is not held in parts; CaFe's is, with "
                f"sparse_tables=True and a loss_type other than CE"
            )
        # what each process has rows of its own of, torch's wrapper must not make equal
        weights = {id(table.weight) for table in sharded}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self, [name for name, weight in self.named_parameters() if id(weight) in weights]
        )

    def _shard(self, config: Any) -> Shard | None:
        """Which rows of its item table this process is to hold; None for all."""
        if config["single_spec"] or not self.net.shards or config["shard_tables"] is False:
            return None
        table = SHARE_OF_ADAM * self.n_items * config["hidden_size"]
        if config["shard_tables"] == "auto" and table < SHARDED_FROM:
            return None
        return Shard(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def sharded(self) -> bool:
        """Whether this process holds a part of the item table."""
        return bool(sharded_tables(self))

    @property
    def learns(self) -> bool:
        """Whether there is something to train."""
        return self.net.learns

    @property
    def scores_intents(self) -> bool:
        """Whether the score of a candidate depends on its intent."""
        return self.network.scores_intents

    @property
    def intents(self) -> ItemIntents:
        """The intents of the items."""
        return self.facts.intents

    # RecBole's three calls -----------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Training loss of a batch, scalar."""
        batch = self.batch(interaction)
        if current() is not None:
            return self.network.loss(batch)
        with drawing(Draws.any(len(batch.history), batch.history.device)):  # a trainer that numbers no steps
            return self.network.loss(batch)

    def calculate_losses(self, interaction: Interaction) -> list[tuple[Tensor, int]]:
        """The parts of the training loss, and the number of terms of each; see :meth:`Net.losses`."""
        return self.network.losses(self.batch(interaction))

    def batch(self, interaction: Interaction) -> Batch:
        """The training rows of an interaction."""
        return Batch(interaction[self.ITEM_SEQ], interaction[TARGET_LIST], interaction[self.USER_ID])

    @torch.no_grad()
    def predict(self, interaction: Interaction) -> Tensor:
        """Score of one item per row. Returns [B]."""
        return self.score_candidates(interaction, interaction[self.ITEM_ID][:, None])[:, 0]

    @torch.no_grad()
    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items. Returns [B, V]; column 0 (padding) is meaningless, as in RecBole."""
        return self.network.scores(self.query(interaction))

    # What ours is asked besides ------------------------------------------------------------------------------------

    @torch.no_grad()
    def score_candidates(self, interaction: Interaction, items: Tensor, intents: Tensor | None = None) -> Tensor:
        """Scores of K candidates per row, each history encoded once.

        Args:
            interaction: B rows.
            items: [B, K] item ids.
            intents: [B, K] to use instead of the items' own (``authors100`` only).

        Returns:
            [B, K].
        """
        return self.network.scores(self.query(interaction), items, intents)

    @torch.no_grad()
    def query(self, interaction: Interaction) -> Query:
        """What the histories of a batch say."""
        return self.network.query(interaction[self.ITEM_SEQ], interaction[self.USER_ID])

    def catalogue(self) -> Ranking:
        """The items with the present weights, as they are ranked."""
        return self.network.catalogue()
