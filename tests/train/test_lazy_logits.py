"""recbole_cafe.train.lazy_logits: RecBole's losses, number for number, without their logits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recbole_cafe import Config
from recbole_cafe.experiment import create_dataset, data_preparation
from recbole_cafe.train import lazy_logits
from recbole_cafe.train.lazy_logits import CatalogueLogits, PromisedLogits

ALL = ("SASRec", "GRU4Rec", "NARM", "Caser", "LightSANs", "FDSA", "BERT4Rec", "SINE", "STAMP", "SRGNN", "GRU4RecF")


@pytest.mark.parametrize("model", ALL)
def test_a_models_loss_and_gradients_are_the_same(toy_path, monkeypatch, model):
    settings = {"data_path": str(toy_path), "MAX_ITEM_LIST_LENGTH": 8, "gpu_id": "", "selected_features": ["intent"]}
    config = Config(model, "toy", config_dict=settings)
    train, _, _ = data_preparation(config, create_dataset(config))
    network = config.model_class(config, train._dataset).eval()
    batch = next(iter(train))
    calls = []
    counted = lazy_logits.linear_ce_loss
    monkeypatch.setattr(lazy_logits, "linear_ce_loss", lambda *a: calls.append(1) or counted(*a))
    results = []
    for mode in (None, PromisedLogits(network, network.n_items)):
        network.zero_grad()
        torch.manual_seed(3)
        if mode is None:
            loss = network.calculate_loss(batch)
        else:
            with mode:
                loss = network.calculate_loss(batch)
        loss.backward()
        results.append([loss.detach(), *(torch.zeros(1) if p.grad is None else p.grad for p in network.parameters())])
    assert len(calls) == (0 if model == "BERT4Rec" else 1)
    for plain, promised in zip(*results, strict=True):
        torch.testing.assert_close(promised, plain, rtol=1e-4, atol=1e-6)


def logits():
    table = nn.Parameter(torch.randn(7, 3))
    model = nn.Module()
    model.table = table
    state = torch.randn(4, 3)
    with PromisedLogits(model, 7):
        promise = torch.matmul(state, table.transpose(0, 1))
    return promise, state @ table.T


def test_whoever_looks_at_the_logits_finds_the_tensor():
    promise, tensor = logits()
    assert isinstance(promise, CatalogueLogits)
    for look in (
        lambda x: x.softmax(-1), lambda x: F.log_softmax(x, dim=-1), lambda x: x / 2, lambda x: 2 * x, lambda x: x + 1,
        lambda x: x - 1, lambda x: -x, lambda x: x[1], lambda x: x.view(-1), lambda x: torch.cat((x, x)),
    ):  # fmt: skip
        torch.testing.assert_close(look(promise), look(tensor))


@pytest.mark.parametrize("settings", [{"reduction": "none"}, {"label_smoothing": 0.1}, {"weight": torch.rand(7)}])
def test_other_cross_entropies_are_torchs(settings):
    promise, tensor = logits()
    target = torch.tensor([0, 6, 2, 2])
    loss = nn.CrossEntropyLoss(**settings)
    torch.testing.assert_close(loss(promise, target), loss(tensor, target))
    ignored = torch.tensor([0, -100, 2, 2])
    torch.testing.assert_close(nn.CrossEntropyLoss()(promise, ignored), nn.CrossEntropyLoss()(tensor, ignored))


def test_other_products_are_products():
    model = nn.Linear(3, 7, bias=False)
    state, other = torch.randn(4, 3), torch.randn(3, 7)
    with PromisedLogits(model, 7):
        assert isinstance(torch.matmul(state, other), torch.Tensor)  # no table of the model
        assert isinstance(torch.matmul(state, model.weight[:5].T), torch.Tensor)  # not the whole of it
        assert isinstance(torch.matmul(state[None], model.weight.T), torch.Tensor)  # three dimensions
        assert isinstance(state @ model.weight.T, CatalogueLogits)
