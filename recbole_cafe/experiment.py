"""Config -> data -> model -> trainer -> Result, for our models and for RecBole's under the same protocol."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import colorama
import numpy as np
import torch
import torch.multiprocessing
from recbole.data.utils import get_dataloader
from recbole.utils import ModelType, get_trainer, init_logger, init_seed, set_color
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record

from recbole_cafe.config.config import AUTO, Config
from recbole_cafe.config.signature import is_ours
from recbole_cafe.data.mapped import read_once
from recbole_cafe.data.samplers import create_samplers
from recbole_cafe.data.sequences import SequenceDataset, dataset_class
from recbole_cafe.data.time_order import simulated_notice, statistics
from recbole_cafe.environment import device_name, versions
from recbole_cafe.errors import OF_THE_USER, ConfigError, MachineError
from recbole_cafe.files.places import check_file, check_folder
from recbole_cafe.files.ranks import RankArrays, save_ranks
from recbole_cafe.files.result import Result
from recbole_cafe.prepare.simulate import is_simulated
from recbole_cafe.processes import ONE_STORE_EACH, launch, meets_lost_ones, place_here
from recbole_cafe.train import checkpoint
from recbole_cafe.train.run_state import SaveEvery, checkpoint_to_resume
from recbole_cafe.train.sharing import check_shared_folder, place_in_group
from recbole_cafe.train.trainer import supported, trainer_class

PICKLE_KEYS = ("save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path")


def run(
    model: str | type,
    dataset: str,
    config_file_list: Sequence[str | Path] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    *,
    overrides: Mapping[str, str] | None = None,
    saved: bool = True,
    result_file: str | Path | None = None,
    ranks_file: str | Path | None = None,
    quiet: bool = False,
) -> Result:
    """Train a model and test it under every protocol of `eval_mode`; or, with `final`, train it on all there is.

    Args:
        model: CaFe or another of ours, a model class, or the name of a sequential or general model of RecBole's.
        dataset: name of a folder of atomic files below `data_path`.
        config_file_list: YAML files of keys, later ones win.
        config_dict: keys; they win over files.
        overrides: keys as text, from a command line; they win over everything.
        saved: keep the best weights in a checkpoint and test them; otherwise the last epoch's are tested.
        result_file: write the result there as JSON.
        ranks_file: write the test ranks of every user there, see :func:`save_ranks`.
        quiet: show warnings and errors alone; the log file is the same.

    Raises:
        ConfigError, DataError: with the key or file at fault.
    """
    for key, path in (("result_file", result_file), ("ranks_file", ranks_file)):
        if path is not None:
            check_file(key, path)  # now, not after hours of training
    place = place_here()
    if place is not None:
        config_dict = {**place.keys(), **(config_dict or {})}
        if place.elastic:  # a process that was started again goes on where the group was
            config_dict.setdefault("resume", "auto")
    config = Config(model, dataset, config_file_list, config_dict, overrides)
    save_every = SaveEvery(config["save_every"])
    if config["resume_from"]:
        checkpoint_to_resume(config["resume_from"])
    check_folder("checkpoint_dir", config["checkpoint_dir"])
    init_seed(config["seed"], config["reproducibility"])
    if ranks_file and config["candidates"] == "recbole":
        raise ConfigError(f"ranks_file={ranks_file}: with candidates=recbole RecBole evaluates, which gives no ranks")
    if ranks_file and config["final"]:
        raise ConfigError(f"ranks_file={ranks_file}: with final=True nothing is held out, so there are no test ranks")
    _fresh_log(config, quiet=quiet)
    logger = logging.getLogger()
    if parameters := is_simulated(Path(config["data_path"])):
        logger.warning(simulated_notice(config["dataset"], parameters))
    logger.info(config)
    if place is not None and meets_lost_ones():
        logger.warning(f"torchrun may start lost processes again, which then may wait for each other in vain: set "
                       f"{ONE_STORE_EACH}=1 before torchrun")  # fmt: skip

    start = perf_counter()
    facts, data, parts = read_once(config, lambda: read(config))
    train_data, valid_data, test_data = loaders(config, data, parts)
    seconds_data = perf_counter() - start

    rank, n_processes = place_in_group(config)
    if n_processes > 1:
        check_shared_folder("checkpoint_dir", config["checkpoint_dir"])
    init_seed(config["seed"], config["reproducibility"])  # all processes begin with the same weights
    recommender = config.model_class(config, train_data._dataset).to(config["device"])
    if rank:
        init_seed(config["seed"] + rank, config["reproducibility"])
    logger.info(recommender)
    trainer = trainer_class(get_trainer(config["MODEL_TYPE"], config["model"]))(config, recommender)
    trainer.save_every, trainer.digests = save_every, train_data._dataset.digests
    if test_data is not None:
        trainer.evaluation.check_places(test_data._dataset)
    trainer.check(test_data)  # `fit` checks the validation
    with trainer.running():
        if config["resume"]:
            trainer.resume_unfinished()
        elif config["resume_from"]:
            trainer.resume_checkpoint(config["resume_from"])
        shown = config["show_progress"] and not quiet and sys.stderr.isatty()  # a file would get every redraw of a bar
        best_score, best_result = trainer.fit(train_data, valid_data, saved=saved, show_progress=shown)
        flat = trainer.evaluate(test_data, load_best_model=saved, show_progress=shown)
        result = Result(
            model=config["model"],
            dataset=config["dataset"],
            seed=config["seed"],
            simulated=trainer.simulated,
            test_result={} if config["final"] else by_protocol(flat, config["eval_mode"]),
            best_valid_score=_defined(best_score),
            best_valid_result={k: _defined(v) for k, v in (best_result or {}).items()},
            epochs=trainer.epochs_run,
            validations_since_best=int(trainer.cur_step),
            seconds={"data": seconds_data, **trainer.seconds},
            peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            parameters=trainer.shards.n_parameters(),
            data=facts,
            candidates=trainer.evaluation.candidate_digests,
            digests=dict(train_data._dataset.digests),
            n_targets=trainer.evaluation.n_targets,
            later_unknown=trainer.evaluation.later_unknown
            if config["candidates"] != "recbole"
            else "RecBole evaluates (candidates=recbole), which gives no ranks",
            versions={**versions(), "device": device_name(config["device"])},
            # how the process was started says nothing about the run
            config={**checkpoint.plain_config(config), "resume": None, "resume_from": None},
            final=bool(config["final"]),
            ranking_settings=trainer.chosen,
            curve=trainer.curve,
            checkpoint=str(trainer.saved_model_file) if saved else "",
        )
        if result.final:
            logger.info(result.table())
        else:
            logger.info(set_color("best valid ", "yellow") + f": {result.best_valid_result}")
            logger.info(set_color("test result", "yellow") + f":\n{result.table()}")
        if ranks_file and rank == 0:
            users, order = _users_in_order(test_data._dataset)
            ranks = {
                protocol: RankArrays(
                    *(values.numpy()[order] for values in (of.above, of.tied, of.n_candidates)),
                    limit=of.limit,
                    later=trainer.evaluation.later.numpy()[order]
                    if protocol == "full" and trainer.evaluation.later is not None
                    else None,
                )
                for protocol, of in trainer.evaluation.ranks.items()
            }
            save_ranks(ranks_file, users, ranks)
            logger.info(f"ranks written to {ranks_file}")
        if result_file and rank == 0:
            result.save(result_file)
            logger.info(f"result written to {result_file}")
    if place is not None:
        torch.distributed.destroy_process_group()
    return result


def _users_in_order(test: SequenceDataset) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the users of the test split, one row a user, in the order of their ids, and the rows in that order."""
    users = test.inter_feat[test.uid_field].numpy()
    order = np.argsort(users, kind="stable")
    return np.asarray(test.field2id_token[test.uid_field])[users[order]], order


def run_distributed(
    model: str | type,
    dataset: str,
    *,
    nproc: int,
    world_size: int = -1,
    ip: str = "localhost",
    port: str = "0",
    group_offset: int = 0,
    max_restarts: int = 0,
    result_file: str | Path | None = None,
    **settings: Any,
) -> Result | None:
    """:func:`run` in `nproc` processes of this machine: what `torchrun --nproc_per_node=N` does.

    Args:
        model: see :func:`run`.
        dataset: see :func:`run`.
        nproc: processes of this machine.
        world_size: processes over all machines; -1 for `nproc`.
        ip: address of the first machine.
        port: its port; "0" for a free one, on one machine.
        group_offset: rank of this machine's first process.
        max_restarts: how often all processes are started again after one was lost; they go on from the last state.
        result_file: write the result there as JSON.
        **settings: the other arguments of :func:`run`.

    Returns:
        process 0's result; None on a machine that does not run process 0.

    Raises:
        ConfigError, DataError, OutputError: as :func:`run`, from the process that met it first.
        MachineError: a process was ended from outside, or the processes do not reach each other.
    """
    if result_file:
        check_file("result_file", result_file)
    context = torch.multiprocessing.get_context("spawn")
    queue, errors = context.SimpleQueue(), context.SimpleQueue()
    try:
        launch(
            _worker, model, dataset, settings, queue, errors, nproc=nproc, ip=ip, port=port, offset=group_offset,
            world_size=nproc if world_size == -1 else world_size, max_restarts=max_restarts,
        )  # fmt: skip
    except ChildFailedError:
        if errors.empty():
            raise  # a bug; its message is the traceback of the process
        raise errors.get() from None
    if queue.empty():
        return None
    result = Result(**queue.get())
    if result_file:
        result.save(result_file)
    return result


@record  # the traceback of a bug reaches the launcher
def _worker(model: str | type, dataset: str, settings: dict[str, Any], queue: Any, errors: Any) -> None:
    """One process. It lives here, so that unpickling it imports recbole_cafe in the process."""
    try:
        result = run(model, dataset, **settings)
    except (torch.distributed.DistNetworkError, torch.distributed.DistStoreError) as error:
        errors.put(MachineError(f"the processes do not find each other: {error}"))
        raise
    except (*OF_THE_USER, OSError, MemoryError) as error:
        errors.put(error)
        raise
    place = place_here()
    if place is not None and place.rank == 0:
        queue.put(json.loads(json.dumps(asdict(result), default=str)))


def _defined(value: float) -> float | None:
    """None for NaN and the infinities: RecBole's best score is -inf where nothing was validated."""
    return float(value) if math.isfinite(value) else None


def by_protocol(flat: Mapping[str, float] | None, protocols: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """`{"ndcg@5": a, "pop100/ndcg@5": b}` as `{"full": {"ndcg@5": a}, "pop100": {"ndcg@5": b}}`."""
    nested: dict[str, dict[str, float | None]] = {name: {} for name in protocols}
    for key, value in (flat or {}).items():
        name, slash, metric = key.rpartition("/")
        nested.setdefault(name if slash else protocols[0], {})[metric] = _defined(value)  # a view comes after all
    return nested


def create_dataset(config: Config) -> Any:
    """The data set of a model, in exact time order. Unlike RecBole's function it opens no pickled cache.

    Raises:
        ConfigError: a model of a kind that is not evaluated by user, history and target; or a request to cache
            data by pickling.
    """
    if not supported(config["MODEL_TYPE"]):
        raise ConfigError(
            f"{config['model']} is a {config['MODEL_TYPE'].name.lower()} model; sequential, general and traditional "
            f"models run through recbole_cafe, for others use RecBole's run_recbole"
        )
    if refused := [key for key in PICKLE_KEYS if config[key]]:
        raise ConfigError(
            f"{', '.join(refused)}: RecBole caches data by pickling, and a pickle from elsewhere runs its author's "
            f"code; recbole_cafe reads the atomic files instead"
        )
    return dataset_class(config)(config)


def read(config: Config) -> tuple[dict[str, Any], Any, list[Any]]:
    """Facts about the data, the data set, and its splits for train, valid and test."""
    dataset = create_dataset(config)
    facts = statistics(dataset, config)
    logging.getLogger().info(f"{config['dataset']}: {facts}")
    parts = dataset.build()
    if config["INTENT_FIELD"] == AUTO:
        facts = statistics(dataset, config)  # with the number of intents, which the split has made
    return facts, dataset, parts


def data_preparation(config: Config, dataset: Any) -> tuple[Any, Any, Any]:
    """RecBole's split, samplers and loaders, without its pickled cache.

    Returns:
        loaders for train, valid and test; None for validation where there is none, and for both with `final`.

    Raises:
        ConfigError: nothing to train on, or nothing to test.
    """
    return loaders(config, dataset, dataset.build())


def loaders(config: Config, dataset: Any, built: list[Any]) -> tuple[Any, Any, Any]:
    """Of the splits of a data set; see :func:`data_preparation`."""
    samplers = create_samplers(config, dataset, built)
    result = []
    for phase, part, sampler in zip(("train", "valid", "test"), built, samplers, strict=True):
        if config["final"] and phase != "train":
            result.append(None)
            continue
        if not len(part):
            if phase != "valid":
                raise ConfigError(_why_empty(phase, config))
            logging.getLogger().warning(f"{config['dataset']}: no user has a validation interaction, no early stopping")
            result.append(None)
            continue
        shuffle = phase == "train" and config["shuffle"]
        # rows of ours are shared step by step (recbole_cafe.train.sharing): the loaders are those of one process
        with _as_if_alone(config) if is_ours(config.model_class) else contextlib.nullcontext():
            result.append(get_dataloader(config, phase)(config, part, sampler, shuffle=shuffle))
    return tuple(result)


@contextlib.contextmanager
def _as_if_alone(config: Config) -> Iterator[None]:
    """Inside, the config is that of a single process."""
    single = config["single_spec"]
    config["single_spec"] = True
    try:
        yield
    finally:
        config["single_spec"] = single


def _why_empty(phase: str, config: Config) -> str:
    """What to do about a train or test split without rows.

    A row of a sequential model has a target and at least one interaction before it.
    """
    what = f"{config['dataset']}: the {phase} split is empty"
    if config["benchmark_filename"]:
        return f"{what}: look at the files of benchmark_filename={config['benchmark_filename']}"
    if config["final"]:
        return f"{what} with final=True; no user has two interactions"
    (kind, value), = config["eval_args"]["split"].items()  # fmt: skip
    shown = f"eval_args: split: {{{kind}: {value}}}"
    if kind != "LS":
        return f"{what} with {shown}; give it a larger share, or more data"
    if value == "valid_only" and phase == "test":
        return f"{what}: {shown} leaves nothing for the test; set it to valid_and_test or test_only"
    rows = {"train": 1, "test": 2}[phase]  # each user keeps a row for training
    least = ("one", "two", "three")[rows - 1 + (config["MODEL_TYPE"] == ModelType.SEQUENTIAL)]
    return f"{what} with {shown}; no user has {least} interactions"


def _fresh_log(config: Config, *, quiet: bool) -> None:
    """A log file of its own for each run; with `quiet` the terminal is shown warnings and errors alone.

    RecBole's init_logger does nothing when the root logger has handlers, so the second run of a process would write
    into the first one's file.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, logging.FileHandler) or type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
            handler.close()
    if sys.stdout is colorama.initialise.wrapped_stdout:  # RecBole wraps it in each run, a layer more each time
        colorama.deinit()
    init_logger(config)
    for handler in root.handlers:
        if quiet and type(handler) is logging.StreamHandler:
            handler.setLevel(max(handler.level, logging.WARNING))
