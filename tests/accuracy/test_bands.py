"""What models reach on ml-100k, which ships inside RecBole, as bands that a broken model leaves.

A job of its own, `make accuracy`: minutes, not seconds. The bands are the smallest and the largest value of three seeds
(2020 to 2022, one thread), widened by a tenth of the mean on either side; the seed and the versions of a machine move a
value inside them, a fault in data, loss or ranking moves it out. `Pop` and `IntentBackoff` learn nothing, so that a
change of theirs is one of the data or of the ranking.
"""

from __future__ import annotations

import pytest

from recbole_cafe import run

pytestmark = pytest.mark.accuracy

SETTINGS = {
    "seed": 2021, "candidates_seed": 2020, "eval_mode": ["full", "pop100"], "train_batch_size": 64, "gpu_id": "",
    "show_progress": False, "state": "WARNING",
}  # fmt: skip
# model: epochs, then lowest and highest NDCG@10 seen in `full` and in `pop100`
BANDS: dict[str, tuple[int, tuple[float, float], tuple[float, float]]] = {
}


@pytest.mark.parametrize("model", BANDS)
def test_a_model_stays_in_its_band(model: str) -> None:
    epochs, *bands = BANDS[model]
    result = run(model, "ml-100k", config_dict={**SETTINGS, "epochs": epochs}).test_result
    for protocol, (low, high) in zip(("full", "pop100"), bands, strict=True):
        margin = 0.1 * (low + high) / 2
        assert low - margin <= result[protocol]["ndcg@10"] <= high + margin, (protocol, result[protocol])
