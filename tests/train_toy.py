"""Train on the toy data: `python tests/train_toy.py RESULT MODEL DATA BITS KEY=VALUE ...`, alone or under torchrun.

With 64 BITS the weights are float64 while they are trained. In float32 two orders of one sum differ in the last bit,
and training makes more of it; in float64 what remains of that is far below any difference a mistake would make.
"""

import sys
from functools import wraps

import torch
import toy

from recbole_cafe import run
from recbole_cafe.train.trainer import EvaluationMixin


def train_in_float64() -> None:
    """Let the trainer hold float64 weights while it trains; what evaluates and saves sees them in float32."""
    trained = EvaluationMixin._train_epoch
    precise: dict[str, torch.Tensor] = {}

    @wraps(trained)
    def epoch(self, *arguments, **options):
        tensors = dict([*self.model.named_parameters(), *self.model.named_buffers()])
        plain = {name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype == torch.float32}
        for name in plain:
            tensors[name].data = precise.get(name, tensors[name].data.double())
        torch.set_default_dtype(torch.float64)
        try:
            return trained(self, *arguments, **options)
        finally:
            torch.set_default_dtype(torch.float32)
            for name, dtype in plain.items():
                precise[name] = tensors[name].data
                tensors[name].data = precise[name].to(dtype)

    EvaluationMixin._train_epoch = epoch


if __name__ == "__main__":
    result_file, model, data_path, bits, *keys = sys.argv[1:]
    if bits == "64":
        train_in_float64()
    settings = {"data_path": data_path, "gpu_id": "", "show_progress": False, "state": "ERROR", "hidden_size": 16,
                "MAX_ITEM_LIST_LENGTH": toy.MAX_LENGTH, "epochs": 3, "train_batch_size": 51, "topk": [1, 5],
                "eval_mode": ["full", "pop10"], "valid_metric": "NDCG@5", "learning_rate": 0.01}  # fmt: skip
    overrides = dict(key.split("=", 1) for key in keys)
    run(model, toy.NAME, config_dict=settings, overrides=overrides, result_file=result_file)
