"""HCRNN: a recurrent network with three levels of context - global, local, temporary.

Song, Ji, Park, Moon: "Hierarchical Context enabled Recurrent Neural Network for Recommendation", AAAI 2019,
arXiv:1904.12674. Authors' code: github.com/gtshs2/HCRNN (read for its formulas; nothing is taken from it).

    global      theta = softmax(mu + sigma * eps), from the set of the session's items: a share of each of K topics v_k
    local       c~_t = sum_k a_k v_k,  a = softmax_k(b . sigmoid(theta_k v_k W_a + h_{t-1} W_h))
                T1 = sigmoid([x_t, h_{t-1}] W + c_{t-1} W + b),   c_t = (1 - T1) c_{t-1} + T1 c~_t
    temporary   r = sigmoid([x_t, h_{t-1}] W + ... + b),   ... = c_{t-1} W in v1, (x_t * c_t) W_2 in v2, nothing in v3
                h~ = tanh(x_t W + (r * h_{t-1}) W + b),    in v3 (r * T2 * h_{t-1}), T2 = sigmoid((x_t * c_t) W_2 + b)
                z = sigmoid([x_t, h_{t-1}] W + c_t W + b),  h_t = (1 - z) h_{t-1} + z h~
    read-out    attention over the h so far by h_n, with `bi_att` also one by c_n over c; these and h_n, bilinear with
                the items; softmax over all items + kl_weight KL(N(mu, sigma) || N(0, I))

W_2 is at least 1e-12 in every entry, so that x * c alike opens the gates.

Differences from the authors' code, each by choice:

* `global_context: running` takes the set of the items up to each position, so that one row can be trained at all
  positions. With ``session``, the code's way, every step sees the set of the whole row, which would tell earlier
  positions their targets: it trains on prefix rows only.
* topic model and recurrent network are updated together; the code steps one, then the other, on each batch.
* W_2 is clipped when it is next read in training, not right after the step.

N real positions in a batch, D hidden size (items, states, contexts alike, since x * c needs it), K topics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_cafe.data.batch import Batch
from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.attention import masked_softmax
from recbole_cafe.layers.dropout import Dropout
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.item_net import ItemNet
from recbole_cafe.model.settings import LossSettings
from recbole_cafe.ranking.query import Query

VERSIONS = ("v1", "v2", "v3")
GLOBAL_CONTEXTS = ("running", "session")
LEAST = 1e-12  # of W_2


class TopicModel(nn.Module):
    """Global context: which topics a set of items is about.

    Args:
        hidden_size: D. n_topics: K.
    """

    def __init__(self, *, hidden_size: int, n_topics: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.mean = nn.Linear(hidden_size, n_topics)
        self.deviation = nn.Linear(hidden_size, n_topics)

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        """bag: [N, D] sums of the items of each set.

        Returns theta [N, K], drawn in training and else at the mean, and each set's divergence from N(0, I), [N].
        """
        hidden = F.elu(self.hidden(bag))
        mean = self.mean(hidden)
        deviation = 1e-6 + F.softplus(self.deviation(hidden))
        draw = mean + deviation * torch.randn_like(mean) if self.training else mean
        square = deviation.square()
        divergence = 0.5 * (mean.square() + square - (1e-8 + square).log() - 1.0).sum(1)
        return draw.softmax(1), divergence


class Cell(nn.Module):
    """Local and temporary context: one step of the recurrence.

    Args:
        hidden_size: D. n_topics: K. version: see the module.
    """

    def __init__(self, *, hidden_size: int, n_topics: int, version: str) -> None:
        super().__init__()
        self.version = version
        size = hidden_size
        self.topic = nn.Parameter(torch.empty(n_topics, size))  # v
        self.topic_key = nn.Linear(size, size, bias=False)  # W_a
        self.topic_query = nn.Linear(size, size, bias=False)  # W_h
        self.topic_score = nn.Parameter(torch.empty(size))  # b
        # side by side, as they read the same: T1, r, z, and of x also the candidate
        self.of_item = nn.Linear(size, 4 * size)
        self.of_state = nn.Linear(size, 3 * size, bias=False)
        self.of_reset = nn.Linear(size, size, bias=False)  # the candidate, of r * h
        self.topic_gate = nn.Linear(size, size, bias=False)  # T1, of c_{t-1}
        self.update_gate = nn.Linear(size, size, bias=False)  # z, of c_t
        self.reset_gate = nn.Linear(size, size, bias=False) if version == "v1" else None  # r, of c_{t-1}
        self.drift = nn.Parameter(torch.empty(size, size)) if version != "v1" else None  # W_2
        self.drift_bias = nn.Parameter(torch.zeros(size)) if version == "v3" else None

    def prepared(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What is the same in all steps.

        x: [N, D] to the items' part of the gates [N, 4 D], the topics' keys [K, D] and W_2, clipped: in training for
        good, as after each step, else what is read alone.
        """
        drift: Tensor | None = self.drift
        if drift is not None:
            if self.training:
                with torch.no_grad():
                    drift.clamp_(min=LEAST)
            else:
                drift = drift.clamp(min=LEAST)
        return self.of_item(x), self.topic_key(self.topic), drift

    def forward(self, x: Tensor, theta: Tensor, h: Tensor, c: Tensor,
                prepared: tuple[Tensor, Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:  # fmt: skip
        """x: [B, D], theta: [B, K], h and c: [B, D] of the step before, prepared: of these rows. Returns h and c."""
        of_item, key, drift = prepared
        x_topic, x_reset, x_update, x_candidate = of_item.chunk(4, dim=1)
        h_topic, h_reset, h_update = self.of_state(h).chunk(3, dim=1)
        # theta_k (v_k W_a) + h W_h, [B, K, D]
        match = torch.addcmul(self.topic_query(h)[:, None], theta[:, :, None], key)
        a = (match.sigmoid() @ self.topic_score).softmax(1)
        gate = torch.sigmoid(x_topic + h_topic + self.topic_gate(c))  # T1
        new_c = torch.lerp(c, a @ self.topic, gate)
        reset, kept = x_reset + h_reset, h
        if self.version == "v1":
            assert self.reset_gate is not None
            reset = reset + self.reset_gate(c)
        elif self.version == "v2":
            assert drift is not None
            reset = reset + (x * new_c) @ drift
        else:
            assert drift is not None and self.drift_bias is not None
            kept = torch.sigmoid((x * new_c) @ drift + self.drift_bias) * h  # T2 * h
        candidate = torch.tanh(x_candidate + self.of_reset(reset.sigmoid() * kept))
        update = torch.sigmoid(x_update + h_update + self.update_gate(new_c))
        return torch.lerp(h, candidate, update), new_c


class ReadOut(nn.Module):
    """Attention over what has been, and the bilinear map to the items.

    Args:
        hidden_size: D. bi_att: attend by the local context too.
    """

    def __init__(self, *, hidden_size: int, bi_att: bool, dropout: float) -> None:
        super().__init__()
        size = hidden_size
        self.key = nn.Linear(size, size, bias=False)
        self.query = nn.Linear(size, size, bias=False)
        self.score = nn.Parameter(torch.empty(size))
        self.context_key = nn.Linear(size, size, bias=False) if bi_att else None
        self.context_query = nn.Linear(size, size, bias=False) if bi_att else None
        self.dropout = Dropout(dropout)
        self.bilinear = nn.Linear((3 if bi_att else 2) * size, size, bias=False)

    def forward(self, h: Tensor, c: Tensor, packing: Packing, at: Tensor) -> Tensor:
        """h, c: [N, D]. at: [M] positions to read at, ascending. Returns [M, D]."""
        start = packing.length.cumsum(0) - packing.length
        parts = []
        # positions with about as much behind them together: less padding, and less memory at a time
        place = packing.position[at]
        order = place.argsort(stable=True)
        for some in order.split(max(256, len(order) // 8)):
            here = at[some]
            steps = torch.arange(int(place[some].max()) + 1, device=at.device)
            seen = steps <= place[some][:, None]  # [m, l]
            index = torch.minimum(start[packing.row[here]][:, None] + steps, here[:, None])
            parts.append(self._read(h, c, here, index, seen))
        read = torch.cat(parts)[order.argsort()]
        mixed: Tensor = self.bilinear(self.dropout(torch.cat((read, h[at]), dim=1)))
        return mixed

    def _read(self, h: Tensor, c: Tensor, here: Tensor, index: Tensor, seen: Tensor) -> Tensor:
        """here: [m]. index: [m, l] what each may see, where `seen`. Returns [m, D], with `bi_att` [m, 2 D]."""
        past = h[index]  # [m, l, D]
        match = (self.key(h)[index] + self.query(h[here])[:, None]).sigmoid() @ self.score
        read = [torch.einsum("ml,mld->md", masked_softmax(match, seen), past)]
        if self.context_key is not None and self.context_query is not None:
            match = torch.einsum("mld,md->ml", self.context_key(c)[index], self.context_query(c[here]))
            match = match * h.shape[1] ** -0.5
            read.insert(0, torch.einsum("ml,mld->md", masked_softmax(match, seen), past))
        return torch.cat(read, dim=1)


@dataclass(frozen=True, kw_only=True)
class ContextSettings:
    """The contexts of HCRNN.

    Attributes:
        n_topics: K, topics of the global context.
        hcrnn_version: one of VERSIONS.
        bi_att: attention to the global context too, when a position is read out.
        global_context: ``running`` or ``session``, the items that the global context is made from.
        input_dropout_prob: dropout of the items' vectors.
        output_dropout_prob: dropout of what is read out.
        kl_weight: weight of the divergence of the global context.

    Raises:
        ConfigError: an option has an unknown value, or fewer than one topic.
    """

    n_topics: int
    hcrnn_version: str
    bi_att: bool
    global_context: str
    input_dropout_prob: float
    output_dropout_prob: float
    kl_weight: float

    def __post_init__(self) -> None:
        if self.hcrnn_version not in VERSIONS:
            raise ConfigError(f"hcrnn_version={self.hcrnn_version!r} is not one of {', '.join(VERSIONS)}")
        if self.global_context not in GLOBAL_CONTEXTS:
            raise ConfigError(f"global_context={self.global_context!r} is not one of {', '.join(GLOBAL_CONTEXTS)}")
        if self.n_topics < 1:
            raise ConfigError(f"n_topics={self.n_topics} should be at least 1")


class HCRNNNet(ItemNet):
    """Topic model, recurrence, read-out.

    Args:
        data: what the data know.
        loss: how the next item is learned.
        contexts: the contexts.
        hidden_size: D.
        initializer_range: standard deviation of the item table at the start.
        train_layout: on which rows it is trained.
        sparse_tables: gradients of the item table hold the rows a batch touched.

    Raises:
        ConfigError: ``session`` with a loss at all positions.
    """

    def __init__(
        self,
        *,
        data: DataFacts,
        loss: LossSettings,
        contexts: ContextSettings,
        hidden_size: int,
        initializer_range: float,
        train_layout: str,
        sparse_tables: bool,
    ) -> None:
        super().__init__(
            data=data, loss=loss, hidden_size=hidden_size, initializer_range=initializer_range,
            sparse_tables=sparse_tables,
        )  # fmt: skip
        if contexts.global_context == "session" and train_layout == "all":
            raise ConfigError(
                "global_context='session' does not suit train_layout='all': the set of a whole row holds the targets "
                "of its earlier positions; use train_layout=last or global_context=running"
            )
        self.global_context, self.kl_weight = contexts.global_context, contexts.kl_weight
        self.dropout = Dropout(contexts.input_dropout_prob)
        self.topics = TopicModel(hidden_size=hidden_size, n_topics=contexts.n_topics)
        self.cell = Cell(hidden_size=hidden_size, n_topics=contexts.n_topics, version=contexts.hcrnn_version)
        self.read_out = ReadOut(hidden_size=hidden_size, bi_att=contexts.bi_att, dropout=contexts.output_dropout_prob)
        side_by_side = {self.cell.of_item.weight: 4, self.cell.of_state.weight: 3}
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name.endswith("bias"):
                    weight.zero_()
                elif weight is not self.item_embedding.weight:
                    for matrix in weight.chunk(side_by_side.get(weight, 1)):
                        bound = (6 / sum(matrix.shape)) ** 0.5  # Glorot
                        matrix.uniform_(-bound, bound)

    not_shared = "its topics are drawn from the process's own random numbers"

    def contexts(self, history: Tensor) -> tuple[Tensor, Tensor, Tensor, Packing]:
        """history: [B, L].

        Returns the temporary and the local context of the real positions, [N, D] each, the divergence of the global one
        [N], and where they are.
        """
        packing = Packing(history > 0)
        x = self.item_embedding(packing.pack(history))  # [N, D]
        theta, divergence = self.topics(self.dropout(self.bags(history, x, packing)))
        if self.global_context == "session":
            theta, divergence = theta[packing.row], divergence[packing.row]
        return *self.recur(self.dropout(x), theta, packing), divergence, packing

    def bags(self, history: Tensor, x: Tensor, packing: Packing) -> Tensor:
        """Sums of distinct items' vectors, [N, D] up to each position or, for ``session``, [B, D] of each row."""
        history = history[:, : int(packing.length.max())]
        again = (history[:, :, None] == history[:, None, :]).tril(-1).any(2)  # [B, l] a repeat of an earlier item
        new = x * ~packing.pack(again)[:, None]
        padded = x.new_zeros(*history.shape, x.shape[1]).index_put((packing.row, packing.position), new)
        return padded.sum(1) if self.global_context == "session" else packing.pack(padded.cumsum(1))

    def recur(self, x: Tensor, theta: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """The recurrence over time, longest rows first, so that each step holds only the rows that are still there.

        Args:
            x: [N, D] the items.
            theta: [N, K] the topics.
            packing: where the positions are.

        Returns:
            h and c of all positions, [N, D] each.
        """
        order = packing.length.argsort(descending=True, stable=True)
        rank = order.argsort()  # of each row
        by_time = (packing.position * len(rank) + rank[packing.row]).argsort()
        sizes = torch.bincount(packing.position).tolist()  # rows that reach each step
        x, theta = x[by_time], theta[by_time]
        of_item, key, drift = self.cell.prepared(x)
        h = c = x.new_zeros(sizes[0], x.shape[1])
        hs, cs = [], []
        for now, share, gates in zip(x.split(sizes), theta.split(sizes), of_item.split(sizes), strict=True):
            h, c = self.cell(now, share, h[: len(now)], c[: len(now)], (gates, key, drift))
            hs.append(h)
            cs.append(c)
        back = by_time.argsort()
        return torch.cat(hs)[back], torch.cat(cs)[back]

    def states(self, history: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:  # noqa: ARG002
        """See :class:`recbole_cafe.model.item_net.ItemNet`."""
        h, c, _, packing = self.contexts(history)
        return self.read_out(h, c, packing, torch.arange(len(h), device=h.device)), packing

    def loss(self, batch: Batch) -> Tensor:
        """Loss of the next item and the mean divergence of the global contexts it was predicted with.

        See :meth:`ItemNet.loss`.
        """
        h, c, divergence, packing = self.contexts(batch.history)
        item = packing.pack(batch.target)
        at = (item > 0).nonzero()[:, 0]
        if not len(at):
            return h.sum() * 0.0
        state = self.read_out(h, c, packing, at)
        return self.target_loss(state, item[at], batch.user[packing.row[at]]) + self.kl_weight * divergence[at].mean()

    def query(self, history: Tensor, user: Tensor | None = None) -> Query:  # noqa: ARG002
        """See :class:`ItemNet`; of each row only the last position is read out."""
        h, c, _, packing = self.contexts(history)
        return Query(self.query_vector(self.read_out(h, c, packing, packing.length.cumsum(0) - 1)))
