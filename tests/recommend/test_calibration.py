"""recbole_cafe.recommend.calibration: the temperature that made probabilities too sharp or too flat is found again."""

from __future__ import annotations

import pytest
import torch

from recbole_cafe.recommend.calibration import temperature_of, tempered


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_what_was_drawn_is_found(temperature: float) -> None:
    true = torch.rand(4000, 6, dtype=torch.float64).log().mul(2).softmax(1)
    came = torch.multinomial(true, 1)[:, 0]
    said = tempered(true, 1 / temperature)  # sharper than true above 1
    assert temperature_of(said, came) == pytest.approx(temperature, rel=0.08)
    torch.testing.assert_close(tempered(said, temperature), true)


def test_what_was_held_impossible_teaches_nothing() -> None:
    said = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    assert temperature_of(said[:1], torch.tensor([0])) is None
    assert tempered(said[0], 2.0).tolist() == [0.0, 1.0]
