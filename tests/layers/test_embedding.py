"""recbole_cafe.layers.embedding: row 0 is zero and stays so; positions are counted right."""

import pytest
import torch
from torch import nn

from recbole_cafe.layers.embedding import PaddedEmbedding, init_transformer, within_ball


@pytest.mark.parametrize("sparse", [False, True])
def test_row_0_is_zero_and_gets_no_gradient(sparse):
    table = PaddedEmbedding(5, 3, std=1.0, sparse=sparse)
    assert torch.count_nonzero(table.weight[0]) == 0
    assert torch.count_nonzero(table.weight[1:]) == 12
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        table(torch.tensor([0, 0, 1, 4])).pow(2).add(1.0).prod(0).sum().backward()
        assert table.weight.grad.is_sparse == sparse
        assert torch.count_nonzero(table.weight.grad.to_dense()[0]) == 0
        assert torch.count_nonzero(table.weight.grad.to_dense()[1]) == 3
        optimizer.step()
    assert torch.count_nonzero(table.weight[0]) == 0


def test_rows_are_drawn_with_the_given_deviation():
    table = PaddedEmbedding(2001, 50, std=0.3)
    assert table.weight[1:].std().item() == pytest.approx(0.3, rel=0.02)  # 1e5 draws: relative error 1 / sqrt(2e5)
    assert table.weight[1:].mean().item() == pytest.approx(0.0, abs=0.005)


def test_the_initialisation_leaves_padded_tables_alone():
    module = nn.ModuleDict(
        {"table": PaddedEmbedding(50, 40, std=1.0), "position": nn.Embedding(50, 40), "linear": nn.Linear(40, 50),
         "no_bias": nn.Linear(40, 50, bias=False)}
    )  # fmt: skip
    table = module["table"].weight.detach().clone()
    init_transformer(module, 0.02)
    assert torch.equal(module["table"].weight, table)
    for drawn in (module[name].weight for name in ("position", "linear", "no_bias")):
        assert drawn.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.count_nonzero(module["linear"].bias) == 0


def test_vectors_are_shortened_to_the_ball_and_those_inside_left_alone():
    vectors = torch.tensor([[[3.0, 4.0], [0.3, 0.4]], [[0.0, 0.0], [0.0, -2.0]]])
    wanted = torch.tensor([[[0.6, 0.8], [0.3, 0.4]], [[0.0, 0.0], [0.0, -1.0]]])
    torch.testing.assert_close(within_ball(vectors, 1.0), wanted)
    assert within_ball(vectors, None) is vectors


def test_outside_the_ball_the_gradient_turns_a_vector_and_does_not_stretch_it():
    vectors = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], requires_grad=True)
    before = vectors.detach().clone()
    (within_ball(vectors, 1.0) * torch.tensor([1.0, 2.0])).sum().backward()
    assert torch.equal(vectors.detach(), before)
    assert (vectors.grad[0] @ before[0]).item() == pytest.approx(0.0, abs=1e-6)
    assert vectors.grad[0].norm() > 0.01
    assert vectors.grad[1:].tolist() == [[1.0, 2.0], [1.0, 2.0]]
