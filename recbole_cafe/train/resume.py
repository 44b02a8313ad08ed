"""Checkpoints, written and read by our trainers, so that a run can be broken off anywhere and gone on with.

A run that was resumed gives the weights, metrics and result, bit for bit, of the one that was not broken off, on the
same machine with the same number of threads: an epoch that was begun is trained again from its start, with every random
stream as it was there.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import Trainer
from torch import Tensor

from recbole_cafe.errors import ConfigError
from recbole_cafe.files.simulated import is_simulated
from recbole_cafe.files.whole import written_whole
from recbole_cafe.model.base import NetRecommender
from recbole_cafe.train import checkpoint
from recbole_cafe.train.checkpoint import CheckpointError, part_of
from recbole_cafe.train.run_state import (
    Lock,
    SaveEvery,
    best_of,
    changed_settings,
    checkpoint_to_resume,
    digests_of,
    find_unfinished,
    last_of,
    random_state,
    refuse_other_data,
    refuse_other_settings,
    set_random_state,
)
from recbole_cafe.train.shards import Shards
from recbole_cafe.train.sharing import place_in_group
from recbole_cafe.train.weight_average import WeightAverage


class ResumeMixin:
    """Checkpoints of plain data, the last state beside the best one, and how a run goes on from them.

    Mixed into a trainer of RecBole's.

    Attributes:
        save_every: when the last state is saved; never, unless `recbole_cafe.run` says so, which also removes it.
        seconds: of training and evaluation.
        epochs_run: that were trained.
        curve: of each of them, see recbole_cafe.files.result.Result.
        shards: tables of which this process holds some rows.
        simulated: whether the data are.
        digests: of the data; `fit` takes them from its loader, unless they are known before.
    """

    _average: WeightAverage | None = None

    def __init__(self, config: Any, model: AbstractRecommender) -> None:
        super().__init__(config, model)
        self.saved_model_file = self._file_name()
        self.seconds = {"train": 0.0, "evaluation": 0.0}
        self.epochs_run = 0
        self.simulated = is_simulated(config["data_path"]) is not None
        self.curve: list[dict[str, float | None]] = []
        self.shards = Shards(model, self.checkpoint_dir)
        self.save_every = SaveEvery(0)
        self.lock = Lock(self.saved_model_file)
        self._keeps_state = False
        self._resumed: tuple[Path, dict[str, Any]] | None = None  # the checkpoint to go on from, until training begins
        self._loaders: list[Any] = []
        self.digests: Mapping[str, str] | None = None
        self._best_epoch = -1
        self._valid_result: Mapping[str, float] | None = None  # of the last validation

    def fit(self, train_data: Any, valid_data: Any = None, verbose: bool = True, saved: bool = True,
            show_progress: bool = False, callback_fn: Any = None) -> tuple[float, Any]:  # fmt: skip
        """RecBole's `fit`; while it runs, the last state stands beside the best weights, see `save_every`.

        Args:
            train_data: RecBole's loader.
            valid_data: RecBole's loader, or None.
            verbose: log each epoch.
            saved: keep the best weights and the last state.
            show_progress: draw bars.
            callback_fn: called after each validation.

        Returns:
            best validation score and the metrics there.

        Raises:
            CheckpointError: the checkpoint to go on from is of other data.
        """
        self._loaders = [loader for loader in (train_data, valid_data) if loader is not None]
        self.digests = digests_of(train_data)
        self._keeps_state = saved and not self.save_every.never and _has_plain_epochs(type(self))
        if self._resumed is not None:
            path, state = self._resumed
            refuse_other_data(state, self.digests, path)
            if not _has_plain_epochs(type(self)):
                raise ConfigError(
                    f"{path}: a run of {self.config['model']} has phases of its own and cannot be resumed"
                )
            if self.start_epoch >= self.epochs:  # nothing is left to train, nor a stream to restore
                self._resumed = None
        try:
            return super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
        finally:
            self.tensorboard.close()  # or its thread stays

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """A run, to its end: then its last state goes. If it breaks off, another may go on with it."""
        try:
            yield
            if self._is_first:
                last_of(self.saved_model_file).unlink(missing_ok=True)
        finally:
            self.lock.give_back()

    @property
    def _is_first(self) -> bool:
        """Whether this process writes files."""
        return place_in_group(self.config)[0] == 0

    def _begin_epoch(self, epoch: int) -> None:
        """Before an epoch: the random streams as they were there, and the last state to its file."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            path, state = resumed
            streams = state.get("random")
            if streams is None:
                self.logger.warning(f"{path} is of an earlier version, without random streams: what follows differs "
                                    f"from what an unbroken run would have given")  # fmt: skip
            else:
                process = place_in_group(self.config)[0]
                set_random_state(streams[process if process < len(streams) else 0], self._loaders)
        elif epoch == 0 or not self._agreed(self.save_every.due(epoch)):
            return
        if self._keeps_state:
            self._hold()
            self._write_state(epoch - 1, last_of(self.saved_model_file))
            self.save_every.saved()

    def _hold(self) -> None:
        """Keep other processes from going on with this run; only one that has a last state can be found by them.

        Raises:
            ConfigError: another process writes it.
        """
        if self._is_first and not self.lock.take():
            raise ConfigError(f"{last_of(self.saved_model_file)} is being written by another process")

    def _agreed(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        if self.config["single_spec"]:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values)
        return values[0]

    def _file_name(self) -> str:
        """Name of the checkpoint, the same in all processes.

        RecBole's has one second's resolution and no data set, so two runs started in one second overwrite each other.
        """
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        name = self._agreed(f"{self.config['model']}-{self.config['dataset']}-{stamp}-{os.getpid()}.pth")
        return str(Path(self.checkpoint_dir) / name)

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Mapping[str, float]]:
        score, self._valid_result = super()._valid_epoch(valid_data, show_progress=show_progress)
        self.curve[-1]["score"] = float(score) if math.isfinite(score) else None
        return score, self._valid_result

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """The best weights so far, with all that a run needs to go on from there."""
        final = bool(self.config["final"])
        if epoch < 0 and not final:  # RecBole's fit, when no epoch is left: what was resumed stands as it is
            return
        if final:  # nothing is validated: the last weights are the ones to keep, and until then there is the last state
            if 0 <= epoch < self.epochs - 1:
                return
            epoch = self.epochs - 1
        path = kwargs.pop("saved_model_file", self.saved_model_file)
        self._best_epoch = epoch
        self._write_state(epoch, Path(path), best_valid_result=self._valid_result)
        if verbose:
            self.logger.info(f"Saving current: {path}")

    def _write_state(self, epoch: int, path: Path, **now: Any) -> None:
        """A checkpoint as plain data and tensors, written whole or not at all.

        Args:
            epoch: the last one that is done.
            path: the file.
            **now: parts that differ from what this trainer holds.
        """
        mine = random_state(self._loaders)
        streams = [mine]
        if not self.config["single_spec"]:
            streams = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(streams, mine)
        if not self._is_first and not self.shards:
            return
        average = None if self._average is None else self._average.state_dict()
        if average is not None:
            average["trained"] = self.shards.of_list(average["trained"], whole=True)
        weights = self.shards.whole_weights()
        optimizer = self.shards.of_optimizer(self.optimizer, self.optimizer.state_dict(), whole=True)
        if not self._is_first:
            return
        state = {
            "config": checkpoint.plain_config(self.config),
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": self.best_valid_result,
            "best_epoch": self._best_epoch,
            "epochs_run": self.epochs_run,
            "curve": self.curve,
            "seconds": self.seconds,
            "simulated": self.simulated,
            "data": None if self.digests is None else dict(self.digests),
            "random": streams,
            "state_dict": weights,
            "other_parameter": self.model.other_parameter(),
            "optimizer": optimizer,
            **now,
        }
        if average is not None:
            state["average"] = average
        checkpoint.save(path, state)

    def _renew_best(self) -> None:
        """The checkpoint of the best weights, which the model holds, with the present config."""
        if self._is_first:
            state = self._load(self.saved_model_file)
            state |= {"config": checkpoint.plain_config(self.config), "state_dict": self.model.state_dict()}
            checkpoint.save(self.saved_model_file, state)

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Go on from a checkpoint, the best of a run (`NAME.pth`) or its last state (`NAME.last`).

        From there on the run is what it would have been without the break. It writes into its own `checkpoint_dir`.

        Args:
            resume_file: the checkpoint.

        Raises:
            ConfigError: it is of another model or of other settings than those that may change.
            CheckpointError: it is damaged, or does not fit; of other data, `fit` says.
            UnsafeCheckpointError: the file would have to be unpickled and `trust_checkpoint` is not set.
        """
        path = checkpoint_to_resume(resume_file)
        state = self._load(path)
        saved = part_of(state, "config", dict, path)
        if str(saved.get("model")).lower() != str(self.config["model"]).lower():
            raise ConfigError(f"{path} holds a {saved.get('model')}, the model to train is {self.config['model']}")
        refuse_other_data(state, self.digests, path)
        changed = changed_settings(saved, self.config)
        refuse_other_settings(changed, path)
        for key, (there, here) in changed.items():
            self.logger.info(f"{path}: {key} was {there}, goes on with {here}")
        epoch = part_of(state, "epoch", int, path)
        if epoch < 0:
            raise CheckpointError(
                f"{path} says epoch {epoch}, as RecBole writes when training has ended: nothing to resume"
            )
        streams = state.get("random")
        processes = place_in_group(self.config)[1]
        # a model whose random numbers belong to the rows goes on in any number of processes
        shared = isinstance(self.model, NetRecommender) and not self.model.network.not_shared
        if streams is not None and (not isinstance(streams, list) or not streams or (
            len(streams) != processes and not shared
        )):  # fmt: skip
            raise CheckpointError(f"{path} is not of a run in {processes} process(es), as this one is")
        if self.config["final"] and epoch >= self.epochs:
            raise ConfigError(f"{path} has {epoch + 1} epochs behind it, and epochs={self.epochs} with final=True")
        self.start_epoch = epoch + 1
        self.cur_step = part_of(state, "cur_step", int, path)
        self.best_valid_score = part_of(state, "best_valid_score", (int, float), path)
        self.best_valid_result = state.get("best_valid_result")
        self._best_epoch = state.get("best_epoch", epoch)
        self.epochs_run = state.get("epochs_run", 0)
        self.curve = part_of(state, "curve", list, path) if "curve" in state else []
        self.seconds.update(state.get("seconds") or {})
        checkpoint.take_weights(self.model, state, path)
        self._take_optimizer(part_of(state, "optimizer", dict, path), path, set(changed))
        self._take_average(state.get("average"), path)
        self._take_best(path)
        self._resumed = path, {key: state.get(key) for key in ("data", "random")}
        self.logger.info(f"Checkpoint loaded. Resume training from epoch {self.start_epoch}")

    def resume_unfinished(self) -> None:
        """Go on with the newest unfinished run of these settings and `digests` in `checkpoint_dir`, if there is one.

        Raises:
            CheckpointError: a last state there is damaged.
        """
        path = self._agreed(find_unfinished(self.config, self.digests) if self._is_first else None)
        if path is None:
            self.logger.info(
                f"resume=auto: no unfinished run of these settings in {self.checkpoint_dir}, a new one begins"
            )
            return
        self.saved_model_file = str(best_of(path))
        self.lock = Lock(path)
        self._hold()
        self.resume_checkpoint(path)

    def _take_optimizer(self, saved: dict[str, Any], path: Path, changed: set[str]) -> None:
        try:
            self.optimizer.load_state_dict(self.shards.of_optimizer(self.optimizer, saved, whole=False))
            for parameter, state in self.optimizer.state.items():
                for name, value in state.items():
                    sizes = (1, parameter.numel(), len(parameter) if parameter.dim() else 1)
                    if isinstance(value, Tensor) and value.numel() not in sizes:
                        raise ValueError(
                            f"{name} of shape {tuple(value.shape)} for weights of {tuple(parameter.shape)}"
                        )
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{path}: the optimiser's state does not fit: {error}") from error
        for key, name in (("learning_rate", "lr"), ("weight_decay", "weight_decay")):
            if key in changed:
                for group in self.optimizer.param_groups:
                    group[name] = self.config[key]

    def _take_average(self, saved: dict[str, Any] | None, path: Path) -> None:
        if not saved:
            return
        average = self._average or WeightAverage(self.model.parameters())
        try:
            own = self.shards.of_list(list(saved["trained"]), whole=False)
            average.load_state_dict({**saved, "trained": own})
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: the mean of the weights does not fit: {error}") from error
        if self._average is None:
            average.train()  # what is in the mean so far is given up

    def _take_best(self, path: Path) -> None:
        """The best weights so far of another run, into this run's own file."""
        best = best_of(path)
        own = Path(self.saved_model_file)
        if not self._is_first or best == own or self._best_epoch < 0:
            return
        if not best.is_file():
            raise CheckpointError(f"{path}: the best weights so far should be in {best}, which is not there")
        with written_whole(own) as file, best.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 24)

    def _load(self, path: str | Path, mmap: bool = False) -> dict[str, Any]:
        """A checkpoint; with a part of its tables in this process none of them is read as a whole.

        mmap: it is this run's own, which need not be looked through for damage.
        """
        trust, parts = bool(self.config["trust_checkpoint"]), bool(self.shards)
        if parts and not mmap and self._is_first:
            checkpoint.check_whole(path)
        return checkpoint.load(
            path, map_location="cpu" if parts else self.device, trust_checkpoint=trust, mmap=mmap or parts
        )


def _has_plain_epochs(trainer: type) -> bool:
    """Whether a trainer's `fit` is RecBole's loop over epochs, without phases of its own around it."""
    after = trainer.__mro__[trainer.__mro__.index(ResumeMixin) + 1 :]
    return next(base for base in after if "fit" in vars(base)) is Trainer
