"""Float32 products that are float32 ones, while ranks are decided by how far off a product can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 matrices round as float32 does (IEEE 754), whatever the process has allowed otherwise:
    TF32 on GPUs and bfloat16 on CPUs keep 10 and 7 of 23 bits, which torch.set_float32_matmul_precision allows.

    Also a decorator. The settings belong to the process: another thread's products are full ones meanwhile.
    """
    if hasattr(BACKENDS[0], "fp32_precision"):  # PyTorch 2.9
        kept = [(backend, backend.fp32_precision) for backend in BACKENDS]
        changed = [(backend, value) for backend, value in kept if value != "ieee"]
        try:
            for backend, _ in changed:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, value in changed:
                backend.fp32_precision = value
        return
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.set_float32_matmul_precision(before)
