"""RecBole's samplers without what they compute for every user and item before anyone draws."""

from __future__ import annotations

from typing import Any

import numpy as np
from recbole.data.utils import create_samplers as recboles
from recbole.sampler import RepeatableSampler

PHASES = ("train", "valid", "test")


class LazySampler(RepeatableSampler):
    """Draws what RecBole's RepeatableSampler draws.

    Its one empty set per user (224 bytes each) is one for all users, and the popularity table, quadratic in the number
    of items, waits for the first draw that needs it: stored candidates need none.
    """

    def set_distribution(self, distribution: str) -> None:
        """`uniform` or `popularity`."""
        self.distribution = distribution
        vars(self).pop("prob", None)

    def get_used_ids(self) -> np.ndarray:
        """[U] empty sets."""
        used = np.empty(self.user_num, dtype=object)
        used.fill(frozenset())
        return used

    def _pop_sampling(self, sample_num: int) -> np.ndarray:
        if "prob" not in vars(self):
            self._build_alias_table()
        return super()._pop_sampling(sample_num)


def create_samplers(config: Any, dataset: Any, built: list[Any]) -> tuple[Any, ...]:
    """RecBole's `create_samplers`: one per phase, None where nothing is drawn.

    Args:
        config: RecBole's Config.
        dataset: the whole data set.
        built: its parts.
    """
    if not config["repeatable"]:
        return recboles(config, dataset, built)
    base, samplers = None, []
    for phase in PHASES:
        arguments = config[f"{phase}_neg_sample_args"]
        sampler = None
        if arguments["distribution"] != "none":
            if base is None:
                alpha = arguments["alpha"] if phase == "train" else 1.0
                sampler = LazySampler(list(PHASES), dataset, arguments["distribution"], alpha)
            else:  # all phases share the train phase's, and so its alpha
                base.set_distribution(arguments["distribution"])
                sampler = base
            base = sampler if phase == "train" else base
        samplers.append(sampler and sampler.set_phase(phase))
    return tuple(samplers)
