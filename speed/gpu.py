"""CaFe on a GPU at the size of the paper's Amazon: seconds per epoch and per step, ranking, memory.

131,248 users, 1,910,226 items, 1,392 intents, 5,370,171 interactions (simulated), width 128, histories of 50, batches
of 64 and 1,024 users. Times and memory are absolute: RecBole's softmax over 1.9 million items in batches of 2,048 takes
16 GB for each copy of its logits. `ours` and `theirs` are the 20 best of 256 states: pruned, and dense with torch.topk.
Without a GPU it says so and stops.
"""

from __future__ import annotations

import statistics
from typing import Any

import common
import torch
from common import PAPER, data, machine, ours, parser, report, workplace
from topk import measure

from recbole_cafe.environment import device_name

BATCHES = (64, 1024)


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script out")
    options = arguments.parse_args()
    with workplace(options) as folder:
        if options.device == "cuda" and not torch.cuda.is_available():
            report(options, "gpu", skipped="no CUDA device here; nothing was measured")
            return
        cuda = options.device == "cuda"
        source = data(options, folder, PAPER)
        trained, side = {}, None
        for batch in BATCHES:
            side = None  # not two tables and four moments at a time
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            side = ours(options, source, train_batch_size=batch, use_gpu=cuda, gpu_id="0")
            trained[str(batch)] = _an_epoch(side) | _memory(cuda)
        # The last side, one epoch old, is the one whose states are ranked
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        side.model.eval()
        speed = machine(options, options.device)
        rows = measure(side, options, speed)
        last = {row["method"]: row for row in rows if row["batch"] == rows[-1]["batch"]}
        report(
            options, "gpu", ours=last["top, pruned"]["seconds"], theirs=last["top, dense"]["seconds"],
            unit="seconds for the 20 best of a batch", device=device_name(torch.device(options.device)),
            cuda=torch.version.cuda, train=trained, ranking=rows, ranking_memory=_memory(cuda),
            parameters=sum(p.numel() for p in side.model.parameters()), data=source.facts, machine=speed,
        )  # fmt: skip


def _an_epoch(side: Any) -> dict[str, float]:
    """One whole epoch; the median step leaves the first ones out, which allocate."""
    steps = common.Steps(side.train_data)
    start = common.clock()
    side.trainer._train_epoch(steps, 0)
    taken = common.clock() - start
    later = steps.seconds[min(10, len(steps.seconds) - 1) :]
    return {"epoch_seconds": taken, "step_seconds": statistics.median(later), "steps": len(steps.seconds)}


def _memory(cuda: bool) -> dict[str, float | None]:
    return {
        "peak_device_mb": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
        "peak_host_mb": common.peak_mb(),
    }


if __name__ == "__main__":
    main()
