"""Multivariate skew-normal logits: z ~ MSN(xi, Sigma, alpha), Sigma = diag(omega) R diag(omega).

Azzalini & Capitanio, "Statistical applications of the multivariate skew normal distribution", JRSS B 1999.

b rows, T vectors z in each, l coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SkewNormal:
    """T independent vectors per row with locations of their own and one covariance and slant.

        delta = R alpha / sqrt(1 + alpha^T R alpha)
        z = xi + omega (delta |u_0| + L eps),   L L^T = R - delta delta^T,   u_0 ~ N(0, 1), eps ~ N(0, I)

    R - delta delta^T is positive semi-definite whenever R is. The mean of z is xi + omega delta sqrt(2 / pi), its
    covariance Sigma - (2 / pi) (omega delta)(omega delta)^T. Differentiable in all four.

    Factors are computed in float32 at least, whatever autocast or the arguments have: they do not exist in half
    precision.

    Attributes:
        location: [b, T, l] xi.
        scale: [b, l] omega.
        correlation: [b, l, l] R, with unit diagonal.
        slant: [b, l] alpha.
        jitter: added to diagonals before they are factored.
    """

    location: Tensor
    scale: Tensor
    correlation: Tensor
    slant: Tensor
    jitter: float

    def __post_init__(self) -> None:
        wide = torch.float64 if self.location.dtype == torch.float64 else torch.float32
        self.location, self.scale = self.location.to(wide), self.scale.to(wide)
        self.correlation, self.slant = self.correlation.to(wide), self.slant.to(wide)

    @property
    def delta(self) -> Tensor:
        """[b, l], each entry in (-1, 1)."""
        with _full_precision(self.slant):
            leaned = torch.einsum("bij,bj->bi", self.correlation, self.slant)
            return leaned / (1.0 + (self.slant * leaned).sum(1, keepdim=True)).sqrt()

    def mean(self) -> Tensor:
        """[b, T, l]."""
        return self.location + (self.scale * self.delta)[:, None] * math.sqrt(2.0 / math.pi)

    def sample(self) -> Tensor:
        """One draw of each vector, [b, T, l]."""
        with _full_precision(self.slant):
            delta = self.delta
            factor = self._factor(self.correlation - delta[:, :, None] * delta[:, None])
            common = torch.randn_like(self.location[..., :1]).abs()
            noise = torch.randn_like(self.location) @ factor.transpose(1, 2)
            return self.location + self.scale[:, None] * (delta[:, None] * common + noise)

    def surprise(self, value: Tensor, real: Tensor) -> Tensor:
        """-ln N(value | 0, Sigma + jitter I) per coordinate: a Gaussian process's negative log marginal likelihood.

        Args:
            value: [b, l].
            real: [b, l], which coordinates count.

        Returns:
            [b] (1 / 2n) (value^T Sigma^-1 value + ln |Sigma| + n ln 2 pi) over the n real coordinates.
        """
        with _full_precision(self.slant):
            scale = self.scale * real
            covariance = scale[:, :, None] * self.correlation * scale[:, None]
            factor = self._factor(covariance + torch.diag_embed((~real).to(scale.dtype)))
            white: Tensor = torch.linalg.solve_triangular(
                factor, (value.to(scale.dtype) * real)[..., None], upper=False
            )
            log_root = factor.diagonal(dim1=1, dim2=2).log().where(real, 0).sum(1)
            n = real.sum(1)
            return (white.square().sum((1, 2)) / 2 + log_root) / n + math.log(2.0 * math.pi) / 2

    def _factor(self, matrix: Tensor) -> Tensor:
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        root: Tensor = torch.linalg.cholesky(matrix + self.jitter * eye)
        return root


def _full_precision(like: Tensor) -> torch.autocast:
    return torch.autocast(device_type=like.device.type, enabled=False)
