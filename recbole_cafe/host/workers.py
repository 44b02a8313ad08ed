"""Functions that RecBole pickles by reference: unpickled in a new process they import recbole_cafe there."""

from __future__ import annotations

from typing import Any


def run_recboles(rank: int, *args: Any) -> None:
    """Run one process of RecBole's `recbole.quick_start.run(..., nproc=N)`.

    RecBole's own worker is found by the new process in RecBole, which does not know us; this one imports us first.
    recbole_cafe.host.registry puts it where RecBole looks its worker up.

    Args:
        rank: number of the process on this machine.
        args: model, data set, list of config files, and a dict of keyword arguments, as RecBole passes them on.
    """
    config_dict = args[-1].setdefault("config_dict", {})
    config_dict["local_rank"] = rank
    from recbole.quick_start import run_recbole

    run_recbole(*args[:3], **args[-1])


def objective_function(
    config_dict: dict[str, Any] | None = None, config_file_list: list[str] | None = None, saved: bool = True
) -> dict[str, Any]:
    """RecBole's objective for HyperTuning, which also knows our models in a process that Ray starts.

    Pickled by reference it imports recbole_cafe in the worker, as RecBole's own, which imports only RecBole, does not.

    Args:
        config_dict: settings.
        config_file_list: YAML files of settings.
        saved: keep the best weights and test those.

    Returns:
        What RecBole's function returns: the model's name, best validation score, validation and test result.
    """
    from recbole.quick_start import objective_function as original

    result: dict[str, Any] = original(config_dict=config_dict, config_file_list=config_file_list, saved=saved)
    return result
