"""Float32 products that are float32 ones, while ranks are decided by how far off a product can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch


class _Backend(Protocol):
    """A kind of product whose precision can be set."""

    fp32_precision: str


_MATMULS: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
# Those whose precision can be set each for itself, from PyTorch 2.9 on; before, mkldnn has no such entry at all
BACKENDS: tuple[_Backend, ...] = tuple(matmul for matmul in _MATMULS if hasattr(matmul, "fp32_precision"))


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 matrices round as float32 does (IEEE 754), whatever the process has allowed otherwise.

    torch.set_float32_matmul_precision can allow TF32 on GPUs and bfloat16 on CPUs, which keep 10 and 7 of 23 bits.

    Also a decorator. The settings belong to the process: another thread's products are full ones meanwhile.
    """
    if BACKENDS:
        before = [backend.fp32_precision for backend in BACKENDS]
        try:
            for backend in BACKENDS:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, precision in zip(BACKENDS, before, strict=True):
                backend.fp32_precision = precision
        return
    process = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.set_float32_matmul_precision(process)
