"""Stacked self-attention blocks in SASRec's arrangement (Kang & McAuley, ICDM 2018), with optional local heads.

They work on the N real positions of a batch, [N, D], never on padding (recbole_cafe.layers.packing).
"""

from torch import Tensor, nn

from recbole_cafe.layers.attention import CausalSelfAttention
from recbole_cafe.layers.dropout import Dropout
from recbole_cafe.layers.packing import Packing

RESIDUALS = ("input", "normed")
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class EncoderBlock(nn.Module):
    """One block: x + Attention(LN(x)), then x + FFN(LN(x)).

    With ``residual="normed"`` the residual carries LN(x) instead of x, as SASRec's and CaFe's released codes do.
    """

    def __init__(self, *, attention: nn.Module, hidden_size: int, inner_size: int, dropout: float,
                 residual: str = "input", hidden_act: str = "relu") -> None:  # fmt: skip
        super().__init__()
        if residual not in RESIDUALS:
            raise ValueError(f"residual={residual!r} is not one of {', '.join(RESIDUALS)}")
        if hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act={hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        self.residual = residual
        self.attention = attention
        self.attention_norm = nn.LayerNorm(hidden_size, eps=1e-8)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=1e-8)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, inner_size), ACTIVATIONS[hidden_act](), Dropout(dropout),
            nn.Linear(inner_size, hidden_size),
        )  # fmt: skip
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """x: [N, D], at the positions of `packing`. Returns [N, D]."""
        normed = self.attention_norm(x)
        x = self.residual_of(x, normed) + self.dropout(self.attention(normed, packing))
        normed = self.feed_forward_norm(x)
        return self.residual_of(x, normed) + self.dropout(self.feed_forward(normed))

    def residual_of(self, x: Tensor, normed: Tensor) -> Tensor:
        """What the residual connection carries."""
        return x if self.residual == "input" else normed


class SequenceEncoder(nn.Module):
    """Positions, dropout, N blocks and a last LayerNorm: embeddings to states, [N, D] each.

    Args:
        hidden_size: D.
        inner_size: width of the feed-forward layer.
        n_layers: number of blocks.
        n_heads, n_local_heads, theta_source, attn_scale: see :class:`CausalSelfAttention`; with no local heads
            theta = 1 everywhere and this is SASRec's encoder.
        max_seq_length: L, number of position vectors. Position 0 is the oldest item of the row.
    """

    def __init__(self, *, hidden_size: int, inner_size: int, n_layers: int, n_heads: int, n_local_heads: int,
                 max_seq_length: int, hidden_dropout_prob: float, attn_dropout_prob: float,
                 theta_source: str = "qk", attn_scale: str = "head", residual: str = "input",
                 hidden_act: str = "relu") -> None:  # fmt: skip
        super().__init__()
        self.position = nn.Embedding(max_seq_length, hidden_size)
        self.dropout = Dropout(hidden_dropout_prob)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                attention=CausalSelfAttention(
                    hidden_size=hidden_size, n_heads=n_heads, n_local_heads=n_local_heads,
                    max_seq_length=max_seq_length, dropout=attn_dropout_prob, theta_source=theta_source,
                    attn_scale=attn_scale,
                ),
                hidden_size=hidden_size, inner_size=inner_size, dropout=hidden_dropout_prob, residual=residual,
                hidden_act=hidden_act,
            )
            for _ in range(n_layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(hidden_size, eps=1e-8)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """x: [N, D] embeddings of the positions of `packing`, rows of at most max_seq_length. Returns [N, D]."""
        x = self.dropout(x + self.position(packing.position))
        for block in self.blocks:
            x = block(x, packing)
        return self.norm(x)
