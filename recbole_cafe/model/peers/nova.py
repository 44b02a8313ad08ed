"""NOVA: side information steers where to attend, never what is carried.

Liu, Li, Cai, Xu, Zhu, Dong, Zhu: "Noninvasive Self-attention for Side Information Fusion in Sequential
Recommendation", AAAI 2021 (NOVA-BERT). The authors' code is not public and the paper's text was not available to us;
the equations follow its abstract, a summary and third-party notes. Our reading: positions are side information, the
fused queries and keys are made anew in every layer from the updated item states (two third-party ports fuse once, so
that deeper layers never see them), the gate's activation, the values of the hyper-parameters.

    X = F(R, f_2, ..., f_m),   Q, K = X W_Q, X W_K,   V = R W_V
    R <- LN(R + Attention(Q, K, V)),   R <- LN(R + FFN(R))

R carries items alone; f are the position and the intent. F is `add`, `concat` (one linear layer) or `gating`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from recbole_cafe.data.facts import DataFacts
from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.embedding import init_transformer
from recbole_cafe.layers.packing import Packing
from recbole_cafe.model.item_net import ClozeNet, MaskedIntents
from recbole_cafe.model.peers.bert4rec import ItemHead
from recbole_cafe.model.settings import EncoderSettings

FUSIONS = ("add", "concat", "gating")
GATES = ("sigmoid", "relu", "softmax")


class Fusion(nn.Module):
    """m features [N, D] each to one.

    Args:
        n_features: m. hidden_size: D. fusion: ``add``, sum; ``concat``, linear layer over all side by side;
            ``gating``, sum weighted by gate(f w), one weight vector w for all features.
        gate_act: ``sigmoid`` or ``relu`` of each gate, or ``softmax`` over the m.

    Raises:
        ConfigError: an unknown fusion or gate_act.
    """

    def __init__(self, *, n_features: int, hidden_size: int, fusion: str, gate_act: str) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ConfigError(f"fusion={fusion!r} is not one of {', '.join(FUSIONS)}")
        if gate_act not in GATES:
            raise ConfigError(f"gate_act={gate_act!r} is not one of {', '.join(GATES)}")
        self.fusion = fusion
        self.gate_act = partial(torch.softmax, dim=1) if gate_act == "softmax" else getattr(torch, gate_act)
        self.concat = nn.Linear(n_features * hidden_size, hidden_size) if fusion == "concat" else None
        self.gate = nn.Linear(hidden_size, 1, bias=False) if fusion == "gating" else None

    def forward(self, features: list[Tensor]) -> Tensor:
        """m tensors [N, D]. Returns [N, D]."""
        if self.concat is not None:
            fused: Tensor = self.concat(torch.cat(features, dim=1))
            return fused
        stacked = torch.stack(features, dim=1)  # [N, m, D]
        if self.gate is not None:
            stacked = self.gate_act(self.gate(stacked)) * stacked
        return stacked.sum(1)


class NOVANet(ClozeNet):
    """Item embeddings through blocks whose queries and keys also see positions and intents; BERT4Rec's head.

    Args:
        data: what the data know.
        encoder: the blocks.
        fusion: see :class:`Fusion`.
        gate_act: see :class:`Fusion`.
        mask_ratio: share of a row's items that is hidden in training.
    """

    needs_intents = True

    def __init__(
        self, *, data: DataFacts, encoder: EncoderSettings, fusion: str, gate_act: str, mask_ratio: float
    ) -> None:
        size, std = encoder.hidden_size, encoder.initializer_range
        super().__init__(data=data, mask_ratio=mask_ratio, hidden_size=size, initializer_range=std)
        self.intents = MaskedIntents(data=data, hidden_size=size, initializer_range=std)
        self.position = nn.Embedding(data.max_seq_length, size)
        self.encoder = encoder.make_bert(data.max_seq_length, positions=None)
        self.fusions = nn.ModuleList(
            Fusion(n_features=3, hidden_size=size, fusion=fusion, gate_act=gate_act) for _ in range(encoder.n_layers)
        )
        self.head = ItemHead(size)
        init_transformer(self, std)

    def states(self, history: Tensor, user: Tensor | None) -> tuple[Tensor, Packing]:  # noqa: ARG002
        """See :class:`recbole_cafe.model.item_net.ItemNet`."""
        packing = Packing(history > 0)
        items = packing.pack(history)  # [N]
        side = [self.position(packing.from_end), self.intents(items)]  # not updated by the layers
        state = self.encoder.enter(self.item_embedding(items), packing)  # [N, D]: items alone
        for block, fusion in zip(self.encoder.blocks, self.fusions, strict=True):
            state = block(state, packing, fusion([state, *side]))
        return state, packing

    def transform(self, state: Tensor) -> Tensor:
        """BERT4Rec's head."""
        transformed: Tensor = self.head(state)
        return transformed
