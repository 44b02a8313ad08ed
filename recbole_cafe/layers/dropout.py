"""Dropout that is cheap on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16  # of a 16-bit draw


class Dropout(nn.Dropout):
    """nn.Dropout; on a CPU four elements share one 64-bit draw.

    PyTorch's CPU dropout draws one Bernoulli variable per element, which took a third of a training step here.
    Sixteen bits per element give the probability to within 1/65536, and the kept elements are scaled by the
    probability that is actually used, so the expectation is exact.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape. Returns the same shape."""
        if not self.training or self.p == 0.0 or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        dropped = round(self.p * LEVELS)
        if dropped >= LEVELS:
            return x * 0.0
        n = x.numel()
        bits = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:n].view(x.shape)
        keep = bits.ge_(
            dropped - LEVELS // 2
        )  # int16 runs from -LEVELS / 2; 0 and 1 stay int16: bool takes four times as long
        return x * keep.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
