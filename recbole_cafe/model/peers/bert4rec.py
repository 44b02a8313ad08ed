"""BERT4Rec without the defects of RecBole 1.2's.

Sun, Liu, Wu, Pei, Lin, Ou, Jiang: "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from
Transformer", CIKM 2019, arXiv:1904.06690. RecBole's own stays available as `BERT4Rec`.

What differs from RecBole's, each with a test: a user's last train item is read and hidden like the others, inference
keeps the oldest item unless the row is full, positions are counted from the end (as in the paper's code), a hidden
first position is trained, at least one item is hidden, padding and mask are no classes, and the loss is a softmax over
the hidden positions of whole rows, one row per user.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from recbole_cafe.data.facts import DataFacts
from recbole_cafe.layers.embedding import init_transformer
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.item_net import ClozeNet
from recbole_cafe.model.settings import EncoderSettings


class ItemHead(nn.Module):
    """BERT's head: dense, GELU, LayerNorm, before the product with the item table."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)

    def forward(self, state: Tensor) -> Tensor:
        """[N, D] to [N, D]."""
        normed: Tensor = self.norm(F.gelu(self.dense(state)))
        return normed


class BERT4RecNet(ClozeNet):
    """Item and position embeddings, bidirectional blocks, BERT's head.

    Args:
        data: what the data know.
        encoder: the blocks.
        mask_ratio: share of a row's items that is hidden in training.
    """

    def __init__(self, *, data: DataFacts, encoder: EncoderSettings, mask_ratio: float) -> None:
        size, std = encoder.hidden_size, encoder.initializer_range
        super().__init__(data=data, mask_ratio=mask_ratio, hidden_size=size, initializer_range=std)
        self.encoder = encoder.make_bert(data.max_seq_length)
        self.head = ItemHead(size)
        init_transformer(self, std)

    def states(self, history: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:  # noqa: ARG002
        """See :class:`recbole_cafe.model.item_net.ItemNet`."""
        packing = Packing(history > 0)
        return self.encoder(self.item_embedding(packing.pack(history)), packing), packing

    def transform(self, state: Tensor) -> Tensor:
        """BERT's head."""
        transformed: Tensor = self.head(state)
        return transformed
