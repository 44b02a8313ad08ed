"""Functions that RecBole pickles by reference: unpickled in a new process they import recbole_cafe there."""

from __future__ import annotations

from typing import Any


def run_recboles(rank: int, *args: Any) -> None:
    """RecBole's worker of `recbole.quick_start.run(..., nproc=N)`.

    RecBole's own is found by the new process in RecBole, which does not know us; this one imports us first.
    recbole_cafe.host.registry puts it where RecBole looks its worker up.
    """
    config_dict = args[-1].setdefault("config_dict", {})
    config_dict["local_rank"] = rank
    from recbole.quick_start import run_recbole

    run_recbole(*args[:3], **args[-1])


def objective_function(config_dict: dict | None = None, config_file_list: list | None = None,
                       saved: bool = True) -> dict:  # fmt: skip
    """RecBole's objective for HyperTuning. Pickled by reference it imports recbole_cafe in the worker, as RecBole's
    own, which imports only RecBole, does not."""
    from recbole.quick_start import objective_function as original

    return original(config_dict=config_dict, config_file_list=config_file_list, saved=saved)
