"""Row-wise Adam against torch's dense Adam, and the norm of mixed gradients."""

import copy

import pytest
import torch
from torch import nn

from recbole_cafe.train import weight_average
from recbole_cafe.train.gradients import clip_grad_norm
from recbole_cafe.train.row_adam import ChainedOptimizer, RowWise, sparse_tables
from recbole_cafe.train.weight_average import WeightAverage

V, D = 200, 8


def pair(dtype: torch.dtype, **options: float) -> tuple[nn.Embedding, RowWise, nn.Embedding, torch.optim.Adam]:
    """A sparse and a dense table with the same rows and their optimisers."""
    torch.manual_seed(0)
    sparse = nn.Embedding(V, D, sparse=True, dtype=dtype)
    dense = nn.Embedding(V, D, dtype=dtype)
    dense.load_state_dict(sparse.state_dict())
    row_wise, adam = RowWise([sparse.weight], **options), torch.optim.Adam(dense.parameters(), **options)
    sparse.register_forward_pre_hook(lambda table, inputs: row_wise.catch_up(table.weight, inputs[0]))
    return sparse, row_wise, dense, adam


def train(
    table: nn.Embedding,
    optimizer: torch.optim.Optimizer,
    steps: int,
    every_row: bool = False,
    generator: torch.Generator | None = None,
) -> None:
    """So many steps, of the draws of `generator` or of always the same."""
    generator = generator or torch.Generator().manual_seed(1)
    for _ in range(steps):
        ids = torch.arange(V) if every_row else torch.randint(0, V, (6,), generator=generator)
        gradient = torch.randn(len(ids), D, generator=generator, dtype=table.weight.dtype)
        optimizer.zero_grad()
        (table(ids) * gradient).sum().backward()
        optimizer.step()


# The missed steps leave out eps and take c beyond the horizon as constant: 1e-4 of the distance travelled is the
# largest difference seen, ten times that is allowed.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.98), (0.0, 0.9)], ids=str)
def test_it_is_dense_adam_though_it_touches_few_rows(dtype, betas):
    """Looked at after so many steps: beyond the memory of the second moment, 1 / (1 - beta2) steps. That of 1000 is
    outlived in float32 alone, which rounds more."""
    until = (1, 20, 300, 3000) if betas[1] == 0.999 and dtype == torch.float32 else (1, 20, 300)
    sparse, row_wise, dense, adam = pair(dtype, lr=1e-3, betas=betas)
    start, draws = dense.weight.detach().clone(), [torch.Generator().manual_seed(1) for _ in range(2)]
    for before, step in zip((0, *until), until, strict=False):
        train(sparse, row_wise, step - before, generator=draws[0])
        train(dense, adam, step - before, generator=draws[1])
        row_wise.catch_up_all()
        travelled = (dense.weight - start).abs().max()
        assert (sparse.weight - dense.weight).abs().max() < 1e-3 * travelled
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.allclose(
                row_wise.state[sparse.weight][moment], adam.state[dense.weight][moment], rtol=1e-3, atol=1e-7
            )


def test_with_every_row_touched_at_every_step_the_updates_are_adams_to_the_last_digits():
    sparse, row_wise, dense, adam = pair(torch.float64, lr=1e-2, weight_decay=0.01)
    train(sparse, row_wise, 50, every_row=True)
    train(dense, adam, 50, every_row=True)
    assert torch.allclose(sparse.weight, dense.weight, rtol=1e-12, atol=1e-12)


def test_a_lookup_reads_rows_as_dense_adam_has_them():
    sparse, row_wise, dense, adam = pair(torch.float64, lr=1e-2)
    train(sparse, row_wise, 100)
    train(dense, adam, 100)
    ids = torch.tensor([3, 7, 7, 150])
    assert torch.allclose(sparse(ids), dense(ids), atol=1e-5)


def test_rows_never_touched_are_left_alone():
    sparse, row_wise, *_ = pair(torch.float32, lr=1e-2)
    before = sparse.weight.detach().clone()
    row_wise.zero_grad()
    sparse(torch.tensor([5])).sum().backward()
    row_wise.step()
    row_wise.catch_up_all()
    changed = (sparse.weight != before).any(1).nonzero().flatten()
    assert changed.tolist() == [5]


def test_training_goes_on_from_a_state_dict_as_if_never_interrupted():
    sparse, row_wise, *_ = pair(torch.float32, lr=1e-2)
    train(sparse, row_wise, 40)
    other = copy.deepcopy(sparse)
    other._forward_pre_hooks.clear()
    resumed = RowWise([other.weight], lr=1e-2)
    resumed.load_state_dict(copy.deepcopy(row_wise.state_dict()))
    other.register_forward_pre_hook(lambda table, inputs: resumed.catch_up(table.weight, inputs[0]))
    assert resumed.state[other.weight]["last"].dtype == torch.int32
    train(sparse, row_wise, 40)
    train(other, resumed, 40)
    assert torch.equal(sparse.weight, other.weight)


def test_a_dense_gradient_is_refused():
    table = nn.Embedding(4, 2)
    optimizer = RowWise(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"sparse=True"):
        optimizer.step()


def test_betas_for_which_the_sum_diverges_are_refused():
    with pytest.raises(ValueError, match="square root"):
        RowWise(nn.Embedding(4, 2, sparse=True).parameters(), betas=(0.9, 0.5))


def test_the_norm_of_sparse_and_dense_gradients_is_that_of_all_of_them():
    torch.manual_seed(0)
    sparse, linear = nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1)
    dense = nn.Embedding(5, 3)
    dense.load_state_dict(sparse.state_dict())
    other = copy.deepcopy(linear)
    ids = torch.tensor([1, 1, 4])  # row 1 twice: its summands must be added before the norm
    linear(sparse(ids)).sum().backward()
    other(dense(ids)).sum().backward()
    norm = clip_grad_norm([*sparse.parameters(), *linear.parameters()], max_norm=0.5)
    of_dense = nn.utils.clip_grad_norm_([*dense.parameters(), *other.parameters()], max_norm=0.5)
    assert norm == pytest.approx(of_dense.item(), rel=1e-6)
    assert torch.allclose(sparse.weight.grad.to_dense(), dense.weight.grad, rtol=1e-5)
    assert torch.allclose(linear.weight.grad, other.weight.grad, rtol=1e-5)


def test_several_optimisers_are_saved_and_restored_as_one():
    sparse, linear = nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1)
    whole = ChainedOptimizer(torch.optim.Adam(linear.parameters()), RowWise(sparse.parameters()))
    linear(sparse(torch.tensor([1, 2]))).sum().backward()
    whole.step()
    again = ChainedOptimizer(torch.optim.Adam(linear.parameters()), RowWise(sparse.parameters()))
    again.load_state_dict(whole.state_dict())
    assert torch.equal(again.parts[1].state[sparse.weight]["exp_avg"], whole.parts[1].state[sparse.weight]["exp_avg"])
    whole.zero_grad()
    assert sparse.weight.grad is None
    assert linear.weight.grad is None
    assert [t is sparse for t in sparse_tables(nn.ModuleList([sparse, linear]))] == [True]


def test_the_mean_of_the_weights_is_shown_and_training_goes_on_from_the_last(monkeypatch):
    monkeypatch.setattr(weight_average, "CHUNK", 4)  # several, the last one not full
    net = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 1))
    average = WeightAverage(net.parameters())
    average.train()  # nothing to give back yet
    for step, expected in ((1.0, 1.0), (4.0, 2.5), (-2.0, 1.0)):  # set to 1, 4, -2: the means are 1, 5/2, 1
        average.train()
        with torch.no_grad():
            for weight in net.parameters():
                weight.fill_(step)
        average.add()
        assert all(torch.allclose(weight, torch.full_like(weight, expected)) for weight in net.parameters())
    average.train()
    assert all(torch.equal(weight, torch.full_like(weight, -2.0)) for weight in net.parameters())
    assert average.state_dict() == {"count": 3, "trained": []}  # the model holds them


def test_a_mean_goes_on_from_a_state_dict():
    def run(states):
        weight = nn.Parameter(torch.zeros(2))
        average = WeightAverage([weight])
        for value, restart in states:
            average.train()
            with torch.no_grad():
                weight.add_(value)
            average.add()
            if restart:
                kept, shown = copy.deepcopy(average.state_dict()), weight.detach().clone()
                weight = nn.Parameter(shown)
                average = WeightAverage([weight])
                average.load_state_dict(kept)
        return weight

    assert torch.allclose(run([(1, False), (2, True), (3, False)]), torch.full((2,), (1 + 3 + 6) / 3))
