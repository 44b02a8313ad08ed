"""Stacked self-attention blocks, in SASRec's arrangement (Kang & McAuley, ICDM 2018) or BERT's (Devlin et al., 2019).

They work on the N real positions of a batch, [N, D], never on padding (recbole_cafe.layers.packing).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.draws import Keys
from recbole_cafe.layers.dropout import Dropout
from recbole_cafe.layers.packing import Packing

ARRANGEMENTS = ("pre", "post")
RESIDUALS = ("input", "normed", "query")
POSITIONS = ("start", "end", None)
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class FeedForward(nn.Sequential):
    """Layers one after the other, whose dropout takes the positions' random numbers."""

    def forward(self, x: Tensor, keys: Keys | None = None) -> Tensor:
        """x: [N, D]; keys: [N]. Returns [N, D]."""
        for part in self:
            x = part(x, keys) if isinstance(part, Dropout) else part(x)
        return x


class EncoderBlock(nn.Module):
    """One block: x + Attention(LN(x)), then x + FFN(LN(x)); or, ``post``, LN(x + Attention(x)), then LN(x + FFN(x)).

    With ``residual="normed"`` the residual of ``pre`` carries LN(x) instead of x, as CaFe's released code has it; with
    ``query``, moreover, keys and values are made of x itself and queries alone of LN(x), as in SASRec's and SSE-PT's.

    Args:
        attention: takes x, where the positions are and what it reads besides, e.g. a
            :class:`recbole_cafe.layers.attention.SelfAttention`.
        hidden_size: D.
        inner_size: width of the feed-forward layer.
        dropout: of what attention and feed-forward layer give.
        residual: key of :data:`RESIDUALS`, see above.
        hidden_act: key of :data:`ACTIVATIONS`.
        arrangement: key of :data:`ARRANGEMENTS`, see above.

    Raises:
        ConfigError: an option has an unknown value.
    """

    def __init__(self, *, attention: nn.Module, hidden_size: int, inner_size: int, dropout: float,
                 residual: str = "input", hidden_act: str = "relu", arrangement: str = "pre") -> None:  # fmt: skip
        super().__init__()
        if residual not in RESIDUALS:
            raise ConfigError(f"residual={residual!r} is not one of {', '.join(RESIDUALS)}")
        if hidden_act not in ACTIVATIONS:
            raise ConfigError(f"hidden_act={hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        if arrangement not in ARRANGEMENTS:
            raise ConfigError(f"arrangement={arrangement!r} is not one of {', '.join(ARRANGEMENTS)}")
        self.residual, self.arrangement = residual, arrangement
        self.attention = attention
        eps = 1e-8 if arrangement == "pre" else 1e-12  # SASRec's, BERT's
        self.attention_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.feed_forward = FeedForward(
            nn.Linear(hidden_size, inner_size), ACTIVATIONS[hidden_act](), Dropout(dropout),
            nn.Linear(inner_size, hidden_size),
        )  # fmt: skip
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing, source: object = None) -> Tensor:
        """x: [N, D], at the positions of `packing`. source: what the attention reads besides. Returns [N, D]."""
        keys = packing.keys if self.training else None
        if self.arrangement == "post":
            x = self.attention_norm(x + self.dropout(self.attention(x, packing, source), keys))
            x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x, keys), keys))
            return x
        normed = self.attention_norm(x)
        if self.residual == "query":
            attended = self.attention(x, packing, source, query=normed)
        else:
            attended = self.attention(normed, packing, source)
        x = self.residual_of(x, normed) + self.dropout(attended, keys)
        normed = self.feed_forward_norm(x)
        x = self.residual_of(x, normed) + self.dropout(self.feed_forward(normed, keys), keys)
        return x

    def residual_of(self, x: Tensor, normed: Tensor) -> Tensor:
        """What the residual connection carries."""
        return x if self.residual == "input" else normed


class SequenceEncoder(nn.Module):
    """Positions, dropout, blocks and LayerNorm: embeddings to states, [N, D] each.

    The LayerNorm comes after the blocks (``pre``) or before them (``post``).

    Args:
        attention: makes the attention of one block, e.g. a :class:`recbole_cafe.layers.attention.SelfAttention`.
        hidden_size: D.
        inner_size: width of the feed-forward layer.
        n_layers: number of blocks.
        max_seq_length: L, number of position vectors.
        positions: position vectors added to the input are counted from the ``start`` of the row (SASRec here and in
            RecBole: vector 0 is the oldest item's) or from its ``end`` (vector 0 is the newest item's: what padding on
            the left, as in the released codes of BERT4Rec and LOCKER, amounts to). A hidden item knows nothing but its
            position, and the one that is asked for is always the last: counted from the start, it would stand where
            no train row of its user reaches. None: no positions.
        hidden_dropout_prob: dropout of the embeddings and of the blocks.
        residual: see :class:`EncoderBlock`.
        hidden_act: see :class:`EncoderBlock`.
        arrangement: see :class:`EncoderBlock`.

    Raises:
        ConfigError: an option has an unknown value.
    """

    def __init__(self, *, attention: Callable[[], nn.Module], hidden_size: int, inner_size: int, n_layers: int,
                 max_seq_length: int, hidden_dropout_prob: float, residual: str = "input", hidden_act: str = "relu",
                 arrangement: str = "pre", positions: str | None = "start") -> None:  # fmt: skip
        super().__init__()
        if positions not in POSITIONS:
            raise ConfigError(f"positions={positions!r} is not one of {', '.join(map(str, POSITIONS))}")
        self.positions = positions
        self.position = None if positions is None else nn.Embedding(max_seq_length, hidden_size)
        self.dropout = Dropout(hidden_dropout_prob)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                attention=attention(), hidden_size=hidden_size, inner_size=inner_size, dropout=hidden_dropout_prob,
                residual=residual, hidden_act=hidden_act, arrangement=arrangement,
            )
            for _ in range(n_layers)
        )  # fmt: skip
        self.arrangement = arrangement
        self.norm = nn.LayerNorm(hidden_size, eps=1e-8 if arrangement == "pre" else 1e-12)

    def forward(self, x: Tensor, packing: Packing, source: object = None) -> Tensor:
        """Embeddings to states.

        Args:
            x: [N, D] embeddings of real positions.
            packing: where they are, in rows of at most max_seq_length.
            source: what every block's attention reads besides.

        Returns:
            [N, D].
        """
        x = self.enter(x, packing)
        for block in self.blocks:
            x = block(x, packing, source)
        return self.norm(x) if self.arrangement == "pre" else x

    def first_weights(self, x: Tensor, packing: Packing) -> list[Tensor]:
        """The attention weights of the first block, whose attention is a :class:`SelfAttention`; see there.

        Args:
            x: [N, D] embeddings, as for :meth:`forward`.
            packing: where they are.
        """
        block: Any = self.blocks[0]
        x = self.enter(x, packing)
        normed = x if self.arrangement == "post" else block.attention_norm(x)
        attended, query = (x, normed) if block.residual == "query" else (normed, None)
        weights: list[Tensor] = block.attention.weights(attended, packing, query)
        return weights

    def enter(self, x: Tensor, packing: Packing) -> Tensor:
        """What the first block gets. [N, D] to [N, D]."""
        if self.position is not None:
            x = x + self.position(packing.position if self.positions == "start" else packing.from_end)
        keys = packing.keys if self.training else None
        entered: Tensor = self.dropout(self.norm(x) if self.arrangement == "post" else x, keys)
        return entered
