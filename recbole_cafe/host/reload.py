"""What a checkpoint was trained on and with, rebuilt: RecBole's load_data_and_model for plain-data checkpoints."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from recbole_cafe.errors import ConfigError
from recbole_cafe.train.checkpoint import CheckpointError, decode, load, take_weights

# What ties a run to one process among several: a restored run is a single process on the present machine.
_DISTRIBUTED_KEYS = ("nproc", "world_size", "offset", "ip", "port")


def restore_config(plain: dict[str, Any], *, simulated: bool = False) -> Any:
    """Return a RecBole Config with the settings of a checkpoint, for a single process on this machine.

    Neither ``sys.argv`` nor a configuration file is read, and no text is evaluated. The device is chosen anew
    from ``gpu_id`` by RecBole's rule, without touching ``CUDA_VISIBLE_DEVICES``.

    Args:
        plain: what the checkpoint holds under ``config``.
        simulated: the model was trained on simulated data, so that the sample may be made where ``amazon`` is missing.

    Raises:
        CheckpointError: ``plain`` names no model or dataset.
        ConfigError: RecBole knows no such model, nor do we.
    """
    import recbole
    from recbole.config import Config
    from recbole.utils import get_model

    final = decode(plain)
    for key in ("model", "dataset"):
        if not (isinstance(final.get(key), str) and final[key]):
            raise CheckpointError(f"the checkpoint's config names no {key}")
    if not final["model"].isidentifier():  # it becomes a part of a module's name
        raise CheckpointError(f"{final['model']!r} cannot be the name of a model")

    config = Config.__new__(Config)
    config._init_parameters_category()
    config.yaml_loader = config._build_yaml_loader()
    config.file_config_dict, config.variable_config_dict, config.cmd_config_dict = {}, {}, {}
    # as a data_path that was given: it is that folder or none, and no sample takes the place of missing data
    place = Path(str(final.get("data_path") or ".")).parent
    config.external_config_dict = {} if simulated else {"data_path": str(place)}
    config.internal_config_dict = {}
    config.final_config_dict = final
    config.model, config.dataset = final["model"], final["dataset"]
    try:
        config.model_class = get_model(config.model)
    except ValueError as error:
        raise ConfigError(
            f"the checkpoint's model {config.model} is known neither to RecBole nor to recbole_cafe. If it is your "
            f"own, import the module that registers it (recbole_cafe.register) first"
        ) from error

    for key in _DISTRIBUTED_KEYS:
        final.pop(key, None)
    final["single_spec"], final["local_rank"] = True, 0
    use_cuda = bool(str(final.get("gpu_id", ""))) and torch.cuda.is_available()
    final["device"] = torch.device("cuda" if use_cuda else "cpu")
    if config.dataset == "ml-100k":  # it ships inside RecBole, which may lie elsewhere on this machine
        final["data_path"] = os.path.join(os.path.dirname(recbole.__file__), "dataset_example", "ml-100k")
    return config


def load_data_and_model(model_file: str | os.PathLike[str], trust_checkpoint: bool = False) -> tuple[Any, ...]:
    """Rebuild what a checkpoint was trained on and with: RecBole's function, for plain-data checkpoints.

    A model of the user's own has to be registered, or be an entry point (recbole_cafe.host.registry).

    The dataset is read from the atomic files. RecBole's cached copies of it (``save_dataset``,
    ``save_dataloaders``, or just a file of the right name in ``checkpoint_dir``) are pickles, which a foreign
    config could point to, so they are part of what ``trust_checkpoint`` allows.

    Args:
        model_file: the checkpoint.
        trust_checkpoint: see :func:`load`.

    Returns:
        ``(config, model, dataset, train_data, valid_data, test_data)``; the last two are None after `final`.

    Raises:
        CheckpointError: there is no such file; see :func:`restore_config`, and the function load of
            recbole_cafe.train.checkpoint.
        UnsafeCheckpointError: see there.
        ConfigError: see :func:`restore_config`.
        DataError: the data set it was trained on is gone, or a simulated one lies in its place.
    """
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, init_logger, init_seed

    from recbole_cafe.data.sequences import dataset_class
    from recbole_cafe.train.run_state import digests_of, refuse_other_data

    state = load(model_file, map_location="cpu", trust_checkpoint=trust_checkpoint)
    if not isinstance(state.get("config"), dict):
        raise CheckpointError(f"{os.fspath(model_file)} holds no config, so its data and model cannot be rebuilt")
    config = restore_config(state["config"], simulated=state.get("simulated") is True)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    final = bool(config["final"])
    logger = logging.getLogger()
    logger.info(config)
    with contextlib.nullcontext() if trust_checkpoint else _without_pickled_data(config):
        # RecBole's own class, which its own models would get, knows no `final`
        dataset = dataset_class(config)(config) if final else create_dataset(config)
        logger.info(dataset)
        loaders = data_preparation(config, dataset)
    if final:
        loaders = (loaders[0], None, None)
    refuse_other_data(state, digests_of(loaders[0]), model_file)

    init_seed(config["seed"], config["reproducibility"])  # as at training time, where the model came next
    model = get_model(config["model"])(config, loaders[0]._dataset).to(config["device"])
    state["other_parameter"] = _to_device(state.get("other_parameter"), config["device"])
    take_weights(model, state, model_file)
    return (config, model, dataset, *loaders)


@contextlib.contextmanager
def _without_pickled_data(config: Any) -> Iterator[None]:
    """Let RecBole look for its pickled datasets and loaders in an empty folder.

    It is kept from writing any.
    """
    final = config.final_config_dict
    with tempfile.TemporaryDirectory() as nowhere:
        switches = {"checkpoint_dir": nowhere, "save_dataset": False, "save_dataloaders": False}
        switches |= {"dataset_save_path": None, "dataloaders_save_path": None}
        kept = {key: final[key] for key in switches if key in final}
        final.update(switches)
        try:
            yield
        finally:
            for key in switches:
                del final[key]
            final.update(kept)


def _to_device(obj: Any, device: torch.device) -> Any:
    """``obj`` with the tensors in it on ``device``."""
    if isinstance(obj, torch.Tensor):
        return obj.to(device)
    if isinstance(obj, dict):
        return {key: _to_device(value, device) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        parts = [_to_device(part, device) for part in obj]
        return tuple(parts) if isinstance(obj, tuple) else parts
    return obj
