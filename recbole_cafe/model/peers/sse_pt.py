"""SSE-PT: Sequential Recommendation Via Personalized Transformer.

Wu, Li, Hsieh, Sharpnack: "SSE-PT: Sequential Recommendation Via Personalized Transformer", RecSys 2020.
Authors' code: github.com/wuliwei9278/SSE-PT (read for comparison; nothing is taken from it).

SASRec on the concatenation of an item's and the user's vector, kept from over-fitting by stochastic shared embeddings
(SSE): in training, ids of items and users are swapped for random ones.

B users in the batch, L positions of which N are real, d_i item size, d_u user size, d = d_i + d_u, V items. Id 0 is
padding, rows are padded on the right (the authors' on the left: only the numbering of positions differs).

The relevance of item l at position t is [F_i ; F_u] . [v_l ; u] = F_i . v_l + F_u . u (Eq. 3). The second term is the
same for every item, so it can change no ranking, and a softmax over the items does not see it either. It is part of the
logits of BCE, where it is one more thing the user's vector learns from, and of nothing else: scores are F_i . v_l,
Eq. 3 less a constant of the row. (In that term the authors' code multiplies u by sqrt(d_u), as at the input; the paper
does not, and neither does this.)

SSE-PT++ trains on random windows of histories longer than L. Here train_layout=all already trains on all of such
a history, cut into windows with fixed places; `window_prob` moves each of them with that probability p_s, anew in each
epoch (recbole_cafe.data.sequences). The authors take one window per user and epoch: with p_s
a random one, else the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_cafe.data.batch import Batch
from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.embedding import PaddedEmbedding, init_transformer
from recbole_cafe.layers.losses import next_id_loss
from recbole_cafe.layers.packing import Packing
from recbole_cafe.layers.sampling import swap_ids, uniform
from recbole_cafe.model.item_net import ItemNet
from recbole_cafe.model.settings import EncoderSettings, LossSettings

SSE_MODES = ("independent", "authors")


@dataclass(frozen=True, kw_only=True)
class SharedEmbeddings:
    """Stochastic shared embeddings: ids swapped for uniformly drawn ones in training.

    Attributes:
        sse_mode: ``independent`` (paper) or ``authors`` (code), see :meth:`SSEPTNet.shared`.
        p_user: probability of a user.
        p_input: probability of an input.
        p_output: probability of a target.

    Raises:
        ConfigError: an unknown sse_mode, a probability outside 0..1, or sse_mode ``authors`` with different p_input and
            p_output.
    """

    sse_mode: str
    p_user: float
    p_input: float
    p_output: float

    def __post_init__(self) -> None:
        if self.sse_mode not in SSE_MODES:
            raise ConfigError(f"sse_mode={self.sse_mode!r} is not one of {', '.join(SSE_MODES)}")
        for key in ("p_user", "p_input", "p_output"):
            if not 0.0 <= (p := vars(self)[key]) <= 1.0:
                raise ConfigError(f"{key}={p} is not a probability")
        if self.sse_mode == "authors" and self.p_input != self.p_output:
            raise ConfigError(
                f"sse_mode='authors' swaps an input and its target in one event of probability p_input=p_output, got "
                f"p_input={self.p_input} and p_output={self.p_output}"
            )


class SSEPTNet(ItemNet):
    """Items beside their user, causal blocks, one inner product.

    Args:
        data: what the data know.
        encoder: the blocks, whose vectors are D + `user_size` wide.
        loss: how the next item is learned.
        sharing: stochastic shared embeddings.
        user_size: size of a user's vector; 0 for none.
        residual: see :class:`recbole_cafe.layers.encoder.EncoderBlock`.
        output_projection: whether the heads are mixed by a matrix.
        sparse_tables: gradients of the tables hold the rows a batch touched.

    Raises:
        ConfigError: a negative user_size.
    """

    def __init__(
        self,
        *,
        data: DataFacts,
        encoder: EncoderSettings,
        loss: LossSettings,
        sharing: SharedEmbeddings,
        user_size: int,
        residual: str,
        output_projection: bool,
        sparse_tables: bool,
    ) -> None:
        size, std = encoder.hidden_size, encoder.initializer_range
        super().__init__(data=data, loss=loss, hidden_size=size, initializer_range=std, sparse_tables=sparse_tables)
        if user_size < 0:
            raise ConfigError(f"user_size={user_size} should be at least 0")
        self.sharing, self.hidden_size = sharing, size
        self.user_embedding = None
        if user_size:
            self.not_served = "its query reads the user, and it knows those of its training alone"
            self.user_embedding = PaddedEmbedding(data.n_users, user_size, std=std, sparse=sparse_tables)
        self.encoder = encoder.make(
            data.max_seq_length, attention={"output_projection": output_projection}, width=size + user_size,
            residual=residual,
        )  # fmt: skip
        init_transformer(self, std)

    def states(self, history: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:
        """F = [F_i ; F_u] of each real position, [N, d]. See :class:`recbole_cafe.model.item_net.ItemNet`."""
        packing = Packing(history > 0)
        x = self.item_embedding(packing.pack(history)) * math.sqrt(self.hidden_size)  # [N, d_i]
        if self.user_embedding is not None:
            u = self.user_embedding(user)  # [B, d_u]
            x = torch.cat((x, math.sqrt(u.shape[1]) * u[packing.row]), dim=1)  # Eq. 2
        return self.encoder(x, packing), packing

    def loss(self, batch: Batch) -> Tensor:
        """Eq. 5 over every position that has a target.

        See :meth:`ItemNet.loss`; negatives avoid the items of the true user, whatever was swapped.
        """
        read, label, reader = batch.history, batch.target, batch.user
        if self.training:
            read, label, reader = self.shared(read, label, reader)
        state, packing = self(read, reader)
        item, owner = packing.pack(label), batch.user[packing.row]
        has_target = item > 0
        constant = None  # F_u . u of Eq. 3, which all the logits of a position have
        if self.user_embedding is not None:
            constant = (state[:, self.hidden_size :] * self.user_embedding(reader)[packing.row]).sum(-1)[has_target]
        return next_id_loss(
            self.query_vector(state)[has_target], item[has_target], owner[has_target], self.item_embedding,
            loss_type=self.loss_settings.loss_type, n_ids=self.n_items, negatives=self.item_negatives,
            n_negatives=self.loss_settings.n_negatives, gbce_t=self.loss_settings.gbce_t, offset=constant,
        )  # fmt: skip

    def shared(self, history: Tensor, target: Tensor, user: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stochastic shared embeddings: inputs, targets and users with some ids swapped for uniformly drawn ones.

        ``independent`` (paper): inputs, targets and users each with a probability of their own. ``authors`` (code): at
        each position, one event swaps input and target, each for a draw of its own; where it does not happen, the
        target follows what the next input has become.

        Args:
            history: [B, L].
            target: [B, L].
            user: [B], one draw for a row, at its input and its output.
        """
        n_users = 2 if self.user_embedding is None else self.user_embedding.num_embeddings
        reader = swap_ids(user, self.sharing.p_user, n_users)
        sharing = self.sharing
        if sharing.sse_mode == "independent":
            read = swap_ids(history, sharing.p_input, self.n_items)
            return read, swap_ids(target, sharing.p_output, self.n_items), reader
        event = uniform(history) < sharing.p_input
        read = torch.where(event, swap_ids(history, 1.0, self.n_items), history)
        following = target.clone()
        following[:, :-1] = torch.where(history[:, 1:] > 0, read[:, 1:], target[:, :-1])
        label = torch.where(event, swap_ids(target, 1.0, self.n_items), following.where(target > 0, 0))
        return read, label, reader

    def query_vector(self, state: Tensor) -> Tensor:
        """F_i, the part of F that an item is multiplied with. [N, d] to [N, d_i]."""
        return state[:, : self.hidden_size]
