"""Probabilities of intents that mean what they say: one temperature, learnt where the truth is known.

Guo, Pleiss, Sun, Weinberger: "On Calibration of Modern Neural Networks", ICML 2017, Section 4.2. NumPy, SciPy, PyTorch.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

WIDEST = math.log(100.0)  # temperatures from 1/100 to 100 are tried


def tempered(probability: Tensor, temperature: float) -> Tensor:
    """p^(1 / T), scaled to sum to one. [..., C] float64 to the same."""
    return (probability.log() / temperature).softmax(-1)


def temperature_of(probability: Tensor, came: Tensor) -> float | None:
    """The temperature under which what came is the likeliest.

    Args:
        probability: [N, C] float64.
        came: [N] which of the C it was; those that the model held impossible are left out.

    Returns:
        T; None if nothing is left.
    """
    log = probability.log()
    log, came = log[possible := log.gather(1, came[:, None])[:, 0] > -torch.inf], came[possible]
    if not len(came):
        return None

    def loss(log_temperature: float) -> float:
        scaled = log / math.exp(log_temperature)
        return float((scaled.logsumexp(1) - scaled.gather(1, came[:, None])[:, 0]).mean())

    return math.exp(minimize_scalar(loss, bounds=(-WIDEST, WIDEST), method="bounded").x)
