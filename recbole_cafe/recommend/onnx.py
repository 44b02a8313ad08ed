"""The network of a bundle for other engines: ONNX, from the ids of a history to its query vector.

The program takes `history`, int64 [B, L]: ids of the items, which are their rows in items.arrow counted from 1, oldest
first, then 0 to the end; at least one item in each row. It gives what :meth:`recbole_cafe.model.net.Net.encoded` gives.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from recbole_cafe.errors import ConfigError, missing_package
from recbole_cafe.files.whole import written_whole
from recbole_cafe.model.net import Net
from recbole_cafe.recommend.bundle import Bundle

TOLERANCE = 1e-4  # of the largest number of an output: float32, summed in another order
ROWS = (1, 2, 33)  # of the histories that both engines are asked


class _Encoder(nn.Module):
    """A net as a function of histories alone."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, history: Tensor) -> tuple[Tensor, ...]:
        """What the net makes of [B, L]."""
        return tuple(self.net.encoded(history).values())


def check_packages() -> None:
    """Raise what :func:`write_encoder` would raise for want of a package.

    Raises:
        MachineError: one is missing.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  what PyTorch writes ONNX with
    except ImportError as error:
        raise missing_package(error, "onnx") from error


def write_encoder(bundle: Bundle, path: Path) -> list[str]:
    """Write the network as an ONNX program that onnxruntime has been seen to run with the same numbers.

    Args:
        bundle: the model.
        path: file to write.

    Returns:
        the names of its outputs.

    Raises:
        ConfigError: the model has no network, or one that ONNX cannot express.
        MachineError: the packages are missing.
        OutputError: the file cannot be written.
    """
    check_packages()
    import onnxruntime

    histories = [_histories(n, bundle) for n in ROWS]
    with torch.inference_mode():
        wanted = [bundle.net.encoded(rows) for rows in histories]
    names = list(wanted[0])
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                _Encoder(bundle.net), (histories[-1],), dynamic_shapes={"history": {0: torch.export.Dim("B", min=1)}}
            )
            written = torch.onnx.export(
                program, dynamo=True, input_names=["history"], output_names=names, verbose=False
            )
            content = io.BytesIO()
            assert written is not None  # without a file
            written.save(content)
    except Exception as error:
        raise ConfigError(f"{bundle.model} cannot be written as ONNX: {_reason(error)}") from error
    session = onnxruntime.InferenceSession(content.getvalue(), providers=["CPUExecutionProvider"])
    for rows, want in zip(histories, wanted, strict=True):
        for name, got in zip(names, session.run(None, {"history": rows.numpy()}), strict=True):
            worst = _difference(want[name], torch.from_numpy(got))
            if not worst <= TOLERANCE:
                raise ConfigError(f"{bundle.model} cannot be written as ONNX: {name} is off by {worst:.1g} there")
    with written_whole(path) as file:
        file.write(content.getvalue())
    return names


def _histories(n: int, bundle: Bundle) -> Tensor:
    """[n, L] of all lengths, drawn by a fixed seed."""
    generator = torch.Generator().manual_seed(n)
    rows = torch.randint(1, bundle.items.n, (n, bundle.max_seq_length), generator=generator)
    length = torch.randint(1, bundle.max_seq_length + 1, (n, 1), generator=generator)
    return rows.masked_fill(torch.arange(bundle.max_seq_length) >= length, 0)


def _difference(want: Tensor, got: Tensor) -> float:
    """The largest difference beside the largest finite number; infinite where just one of them is."""
    finite = want.isfinite()
    if want.shape != got.shape or not torch.equal(finite, got.isfinite()):
        return float("inf")
    if not torch.equal(want[~finite], got[~finite]) or not finite.any():
        return float("inf") if finite.any() else 0.0
    return float((want - got)[finite].abs().max() / want[finite].abs().max().clamp(min=1e-12))


def _reason(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters log and print: their failures come back as one error."""
    before, said = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
