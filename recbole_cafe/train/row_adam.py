"""Dense Adam at a cost that does not grow with the catalogue.

A table of V rows gets a gradient in the few rows a batch touches, but dense Adam moves every row at every step: the
momentum of a row goes on moving it after it was touched. That is worth keeping: per touch, a rare item moves about ten
times as far as under lazy Adam, which leaves untouched rows alone and so trains rare items too little.

`RowWise` computes the same thing from the other end. While a row is not touched its gradient is zero, so dense Adam's
moments and steps of the k steps it missed have a closed form; they are applied when the row is next read
(:meth:`RowWise.catch_up`, before a lookup) or when the table is read as a whole (:meth:`RowWise.catch_up_all`, before
evaluation and checkpoints). A step then reads and writes what the batch touched, whatever V is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SPARSE_LEARNERS = ("adam", "adamw", "sgd", "adagrad")


class RowWise(torch.optim.Optimizer):
    """Adam for tables with sparse gradients, the same as dense Adam but for eps in the steps a row missed.

    A row last updated at step t with moments m, v has, k steps without gradient later, the moments beta1^k m and
    beta2^k v, and dense Adam has moved it by

        -lr m / sqrt(v) * sum_{j=1..k} r^j c(t + j)
        r = beta1 / sqrt(beta2),   c(s) = sqrt(1 - beta2^s) / (1 - beta1^s)

    (with eps as it is at the last missed step). With U(t) the infinite sum the finite one is U(t) - r^k U(t + k).

    Args:
        params: embedding tables with ``sparse=True``.
        lr: learning rate.
        betas: decay rates of the two moments, as in torch.optim.Adam.
        eps: added to the root of the second moment.
        weight_decay: as in torch.optim.Adam, but it acts in the steps that touch a row only.
        decoupled: weight decay of AdamW instead of Adam's L2 term.

    Raises:
        ValueError: beta1 is not below sqrt(beta2), and the sum would not converge; a gradient is dense.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0, *, decoupled: bool = False) -> None:  # fmt: skip
        if not 0 <= betas[0] < betas[1] ** 0.5 < 1:
            raise ValueError(f"betas={betas}: beta1 must be below the square root of beta2, and both below 1")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decoupled": decoupled}
        super().__init__(params, defaults)
        self._tails: dict[tuple[float, float], Tensor] = {}  # betas -> U(0), U(1), ...

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of the rows that have a gradient."""
        if closure is not None:
            raise ValueError("RowWise takes no closure")
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, group)

    def _update(self, table: Tensor, group: dict[str, Any]) -> None:
        if not table.grad.is_sparse:
            raise ValueError("RowWise updates tables with sparse gradients; use nn.Embedding(..., sparse=True)")
        gradient = table.grad.coalesce()
        rows, value = gradient.indices()[0], gradient.values()  # [R], [R, D]
        state = self._state(table)
        self._catch_up(table, rows, group, state)
        state["step"] += 1
        step, (beta1, beta2) = state["step"], group["betas"]
        weight = table.index_select(0, rows)
        if group["weight_decay"]:
            if group["decoupled"]:
                weight.mul_(1 - group["lr"] * group["weight_decay"])
            else:
                value = value.add(weight, alpha=group["weight_decay"])
        mean = state["exp_avg"].index_select(0, rows).lerp_(value, 1 - beta1)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(beta2).addcmul_(value, value, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        state["last"][rows] = step
        denominator = square.sqrt_().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        weight.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1**step))
        table.index_copy_(0, rows, weight)

    @torch.no_grad()
    def catch_up(self, table: Tensor, rows: Tensor) -> None:
        """Apply the missed steps of the rows about to be read.

        Args:
            table: one of the tables.
            rows: ids of any shape, repeats allowed.
        """
        state = self._state(table)
        if state["step"]:
            self._catch_up(table, torch.unique(rows), self._group_of(table), state)

    @torch.no_grad()
    def catch_up_all(self) -> None:
        """Apply the missed steps of all rows ever touched: afterwards the tables are what dense Adam's are."""
        for group in self.param_groups:
            for table in group["params"]:
                state = self._state(table)
                behind = ((state["last"] > 0) & (state["last"] < state["step"])).nonzero()[:, 0]
                for rows in behind.split(2**16):
                    self._catch_up(table, rows, group, state)

    def _catch_up(self, table: Tensor, rows: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        """rows: [R] distinct."""
        now, last = state["step"], state["last"].index_select(0, rows).long()
        behind = (last > 0) & (last < now)
        if not bool(behind.any()):
            return
        rows, last = rows[behind], last[behind]
        beta1, beta2 = group["betas"]
        missed = (now - last).double()  # [R] k
        ratio = beta1 / beta2**0.5
        tail = self._tail(group["betas"], now, table.device)
        moved = (tail[last] - ratio**missed * tail[now]).to(table.dtype)[:, None]
        mean, square = state["exp_avg"].index_select(0, rows), state["exp_avg_sq"].index_select(0, rows)
        weight = table.index_select(0, rows)
        eps = group["eps"] * (1 - beta2**now) ** 0.5  # dense Adam adds eps to the corrected root
        weight.addcdiv_(mean * moved, square.sqrt().add_(eps), value=-group["lr"])
        table.index_copy_(0, rows, weight)
        state["exp_avg"].index_copy_(0, rows, mean.mul_((beta1**missed).to(table.dtype)[:, None]))
        state["exp_avg_sq"].index_copy_(0, rows, square.mul_((beta2**missed).to(table.dtype)[:, None]))
        state["last"][rows] = now

    def _tail(self, betas: tuple[float, float], step: int, device: torch.device) -> Tensor:
        """U(0), ..., U(at least step) of the class docstring, float64.

        From the backward recursion U(t) = r (c(t + 1) + U(t + 1)). Where the table ends c is close to 1, and what it
        would add is below r^512.
        """
        known = self._tails.get(betas)
        if known is None or len(known) <= step:
            beta1, beta2 = betas
            n = max(4096, 2 * step)
            s = np.arange(1, n + 513, dtype=np.float64)
            c = np.sqrt(1 - beta2**s) / (1 - beta1**s)
            ratio = beta1 / beta2**0.5
            tail = np.empty(n + 513)
            tail[-1] = c[-1] * ratio / (1 - ratio)
            for t in range(n + 511, -1, -1):
                tail[t] = ratio * (c[t] + tail[t + 1])  # c[t] is c(t + 1)
            known = torch.from_numpy(tail[: n + 1])
            self._tails[betas] = known
        return known.to(device)

    def _state(self, table: Tensor) -> dict[str, Any]:
        state = self.state[table]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = untouched_zeros(table), untouched_zeros(table)
            # step of each row's last update, 0 for never: 2^31 steps are enough
            state["last"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)
        return state

    def _group_of(self, table: Tensor) -> dict[str, Any]:
        return next(g for g in self.param_groups if any(p is table for p in g["params"]))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore; torch casts a state's tensors to the parameter's type, the row counters must stay whole numbers."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["last"] = state["last"].to(torch.int32)


def untouched_zeros(like: Tensor) -> Tensor:
    """Zeros of the same shape whose pages the system provides when they are first written, on a CPU."""
    if like.device.type != "cpu":
        return torch.zeros_like(like)
    return torch.from_numpy(np.zeros(tuple(like.shape), dtype=np.float32)).to(like.dtype)  # calloc


class ChainedOptimizer(torch.optim.Optimizer):
    """Several optimisers as one: what RecBole's trainer holds, steps and saves.

    Args:
        parts: the optimisers, over disjoint parameters.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        # A plain Optimizer over all parameters, for zero_grad and for whoever reads or sets param_groups.
        super().__init__([p for part in parts for g in part.param_groups for p in g["params"]], {})
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:
        """One step of each."""
        for part in self.parts:
            part.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """The parts' states."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the parts' states."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def sparse_tables(model: nn.Module) -> list[nn.Embedding]:
    """The embedding tables of a model that get sparse gradients."""
    return [m for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse]
