"""What RecBole 1.2.0 and 1.2.1 need to run on current Python, NumPy, pandas, SciPy, PyTorch and setuptools.

One entry per defect, each with RecBole's issue numbers, the condition under which it applies and when it can
go; ``DEFECTS`` lists them. ``apply()`` runs once, when RecBole is imported (see hook.py), and works for
functions of RecBole which somebody imported earlier. It repairs RecBole's own objects, for every
user of RecBole in the process, and outside RecBole only: NumPy aliases which are missing (RecBole sets them
itself), a private method which SciPy's dok_matrix lost, and PyTorch's anomaly mode, which RecBole switches
on.

The environment variable ``RECBOLE_CAFE_COMPAT`` decides: ``0`` switches everything off, ``-name1,-name2``
single entries.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.util
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from recbole_cafe.errors import ConfigError

_logger = logging.getLogger("recbole_cafe.host.compat")

SWITCH = "RECBOLE_CAFE_COMPAT"
# Kept on the module recbole, so that a second import of this one wraps nothing twice.
_RECORD = "_recbole_cafe_compat"


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong in RecBole, and its repair."""

    name: str
    what: str  # what goes wrong
    issues: str  # RUCAIBox/RecBole issue numbers
    when: str  # the condition, in words
    until: str  # when this entry can go
    needed: Callable[[], bool]  # the condition, tested
    repair: Callable[[], None]

    @property
    def applied(self) -> bool:
        """Whether it is in force in this process."""
        return self.name in _record()


DEFECTS: list[Defect] = []


def defect(
    *, name: str, issues: str, until: str, when: str = "always", needed: Callable[[], bool] = lambda: True
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Add the decorated function to ``DEFECTS``; its docstring says what goes wrong without it."""

    def add(repair: Callable[[], None]) -> Callable[[], None]:
        what = " ".join((repair.__doc__ or "").split())
        DEFECTS.append(Defect(name, what, issues, when, until, needed, repair))
        return repair

    return add


def apply() -> list[str]:
    """Repair what needs it, once per process; return the names of the entries in force."""
    off = _switched_off()
    if off is None:
        return []
    done = _record()
    for entry in DEFECTS:
        if entry.name not in done and entry.name not in off and entry.needed():
            entry.repair()
            done.append(entry.name)
    import recbole

    _logger.info("RecBole %s, compatibility entries in force: %s", recbole.__version__, ", ".join(done) or "none")
    return [entry.name for entry in DEFECTS if entry.applied]


def _switched_off() -> set[str] | None:
    """The entries switched off by the environment; None means all of them."""
    setting = os.environ.get(SWITCH, "").strip()
    if setting == "0":
        return None
    words = {word.strip() for word in setting.split(",")} - {"", "1"}
    off = {word[1:] for word in words if word.startswith("-")}
    unknown = {word for word in words if not word.startswith("-")} | (off - {entry.name for entry in DEFECTS})
    if unknown:
        known = ", ".join(entry.name for entry in DEFECTS)
        _logger.warning(
            "%s=%r: %s not understood; write 0, or -NAME[,-NAME...] with NAME one of %s",
            SWITCH,
            setting,
            ", ".join(sorted(unknown)),
            known,
        )
    return off


def _record() -> list[str]:
    import recbole

    return recbole.__dict__.setdefault(_RECORD, [])


# ----------------------------------------------------------------------------------------------------
# Tools
# ----------------------------------------------------------------------------------------------------


class _Overlay(types.ModuleType):
    """A module as one module of RecBole sees it: some names replaced, the rest looked up in the original."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        super().__init__(module.__name__, module.__doc__)
        self.__dict__.update(replaced)
        self.__dict__["_original"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_original"], name)


def _wrap(owner: type, name: str) -> Callable[[Callable], None]:
    """Replace the method ``owner.name`` by the decorated function, whose first argument is the stock
    method.
    """

    def put(function: Callable) -> None:
        stock = getattr(owner, name)

        @functools.wraps(stock)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return function(stock, self, *args, **kwargs)

        setattr(owner, name, method)

    return put


def _redirect(function: types.FunctionType, to: types.FunctionType) -> None:
    """Give ``function`` the body of ``to``, so that references to it which were imported earlier follow too.

    ``to`` must import what it uses, since it runs among the globals of ``function``. The stock function stays
    within reach as ``function.stock``.
    """
    function.stock = types.FunctionType(  # type: ignore[attr-defined]
        function.__code__, function.__globals__, function.__name__, function.__defaults__
    )
    function.__code__, function.__defaults__ = to.__code__, to.__defaults__


@contextlib.contextmanager
def _stand_in(name: str, **contents: Any) -> Iterator[None]:
    """Let ``import name`` find a module with ``contents``, for as long as the block runs."""
    missing = name not in sys.modules
    if missing:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(contents)
    try:
        yield
    finally:
        if missing:
            del sys.modules[name]


def _is_missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


# ----------------------------------------------------------------------------------------------------
# NumPy, SciPy, pandas
# ----------------------------------------------------------------------------------------------------

_NUMPY_NAMES = {
    "bool": np.bool_, "bool8": np.bool_, "int": np.int_, "long": np.int_, "float": np.float64,
    "complex": np.complex128, "object": np.object_, "str": np.str_, "unicode": np.str_,
}  # fmt: skip


def _add_numpy_names(_config: Any = None) -> None:
    for name, scalar in _NUMPY_NAMES.items():
        if name not in vars(np):  # getattr would warn, or find what NumPy 2 means by the name
            setattr(np, name, scalar)


@defect(name="numpy-names", issues="#1604 #1714 #2203", until="RecBole uses no removed NumPy name")
def _numpy_names() -> None:
    """RecBole uses np.float, np.bool, np.long and others, which NumPy removed, and sets them itself only
    when a Config is made, from names (np.float_) which NumPy 2 removed too.
    """
    from recbole.config import Config

    _add_numpy_names()
    Config.compatibility_settings = _add_numpy_names


def _dok_update_is_missing() -> bool:
    from scipy.sparse import dok_matrix

    return not hasattr(dok_matrix, "_update") and hasattr(dok_matrix((1, 1)), "_dict")


@defect(
    name="scipy-dok-update",
    issues="#2034 #2090 #2185",
    when="SciPy 1.13 or later",
    needed=_dok_update_is_missing,
    until="RecBole's graph models build their matrix otherwise",
)
def _scipy_dok_update() -> None:
    """LightGCN, NGCF, SpectralCF, GCMC, NCL, KGIN and MCCLK fill a dok_matrix by its private _update, which
    is gone.
    """
    from scipy.sparse import dok_matrix

    def _update(self: Any, entries: dict[tuple[int, int], Any]) -> None:
        self._dict.update(entries)

    dok_matrix._update = _update


def _filling_in_place_is_lost() -> bool:
    if int(pd.__version__.split(".")[0]) >= 3:
        return True
    with contextlib.suppress(KeyError):  # before pandas 1.5 there is no such option
        return pd.get_option("mode.copy_on_write") is True
    return False


@defect(
    name="pandas-fill-nan",
    issues="none known",
    when="pandas 3, or copy-on-write switched on in pandas 2",
    needed=_filling_in_place_is_lost,
    until="RecBole assigns what it fills",
)
def _pandas_fill_nan() -> None:
    """Missing values of user and item features stay NaN, silently: the padding row of a token field becomes
    the smallest integer, floats stay NaN.
    """
    from recbole.data.dataset import Dataset
    from recbole.utils import FeatureType

    def _fill_nan(self: Any) -> None:
        empty = {FeatureType.TOKEN_SEQ: np.array([], dtype=np.int64), FeatureType.FLOAT_SEQ: np.array([])}
        for feat in (getattr(self, name) for name in self.feat_name_list):
            for field in feat:
                column, kind = feat[field], self.field2type[field]
                if kind == FeatureType.TOKEN:
                    feat[field] = column.fillna(0)
                elif kind == FeatureType.FLOAT:
                    feat[field] = column.fillna(column.mean())
                else:
                    feat[field] = [empty[kind] if isinstance(value, float) else value for value in column]

    Dataset._fill_nan = _fill_nan


@defect(
    name="pandas-seq-columns",
    issues="none known",
    when="pandas 3, or copy-on-write switched on in pandas 2",
    needed=_filling_in_place_is_lost,
    until="RecBole assigns what it fills",
)
def _pandas_seq_columns() -> None:
    """An empty cell in a token_seq or float_seq column: "'float' object has no attribute 'split'"."""
    from recbole.data.dataset import dataset

    def read_csv(*args: Any, **kwargs: Any) -> pd.DataFrame:
        table = pd.read_csv(*args, **kwargs)
        lists = [column for column in table.columns if str(column).endswith("_seq")]  # name:token_seq
        table[lists] = table[lists].fillna("")
        return table

    dataset.pd = _Overlay(pd, read_csv=read_csv)
    lost = getattr(pd.errors, "ChainedAssignmentError", None)
    if lost:  # RecBole's own fill is lost still, but there is nothing left for it to do
        warnings.filterwarnings("ignore", category=lost, module=r"recbole\.data\.dataset\.dataset$")


@defect(
    name="pandas-read-only-columns",
    issues="none known",
    when="pandas 3, or copy-on-write switched on in pandas 2",
    needed=lambda: not pd.Series([1]).to_numpy().flags.writeable,
    until="RecBole makes its tensors from copies",
)
def _pandas_read_only_columns() -> None:
    """Every run warns that a tensor shares the memory of a column that must not be written to.

    Nobody writes to it, and a copy would cost the memory of the column.
    """
    warnings.filterwarnings(
        "ignore", "The given NumPy array is not writ", UserWarning, r"recbole\.data\.dataset\.dataset$"
    )


def _agg_takes_the_column_at_once() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas 2 announces the change
        return not isinstance(pd.Series([[1], [2, 3]]).agg(len), pd.Series)


def _length(obj: Any) -> Any:
    """``len``; but of a column of lists or arrays the length of each, which RecBole's ``.agg(len)`` means."""
    if isinstance(obj, pd.Series) and all(isinstance(cell, (list, tuple, np.ndarray)) for cell in obj):
        return obj.map(len)
    return len(obj)


@defect(
    name="pandas-lengths",
    issues="none known",
    when="pandas 3",
    needed=_agg_takes_the_column_at_once,
    until="RecBole writes .map(len)",
)
def _pandas_lengths() -> None:
    """Series.agg(len) is the number of rows, no longer the length of each cell: token_seq and float_seq
    columns fail, and benchmark files with them.
    """
    from recbole.data.dataset import dataset, kg_dataset, sequential_dataset

    for module in (dataset, kg_dataset, sequential_dataset):
        module.len = _length  # shadows the builtin there, where no code asks for the len of a Series


@defect(name="loader-rows", issues="none known", until="RecBole's loaders keep a range")
def _loader_rows() -> None:
    """A loader keeps the numbers 0, 1, 2, ... of its rows as a list of Python integers, 36 bytes a row."""
    from recbole.data.dataloader import abstract_dataloader

    def keep_range(values: Any = ()) -> Any:
        return values if isinstance(values, range) else list(values)

    abstract_dataloader.list = keep_range  # shadows the builtin there


@defect(name="interaction-sort", issues="none known", until="RecBole sorts tensors with torch")
def _interaction_sort() -> None:
    """Interaction.sort fails with ascending=False (negative strides) on every NumPy, and NumPy 2 warns that
    it will not argsort tensors for long.
    """
    from recbole.data.interaction import Interaction

    @_wrap(Interaction, "sort")
    def sort(stock: Callable, self: Interaction, by: Any, ascending: Any = True) -> None:
        fields = [by] if isinstance(by, str) else by
        upwards = [ascending] if isinstance(ascending, bool) else ascending
        if not (
            isinstance(fields, (list, tuple))
            and all(field in self.interaction for field in fields)
            and isinstance(upwards, (list, tuple))
            and all(isinstance(up, bool) for up in upwards)
            and len(upwards) in (1, len(fields))
        ):
            stock(self, by, ascending)  # says what is wrong
            return
        for field, up in reversed(list(zip(fields, upwards * (len(fields) // len(upwards)), strict=True))):
            key = self.interaction[field]
            key = key if key.dim() == 1 else key[..., 0]
            self._reindex(torch.sort(key, stable=True, descending=not up).indices)


# ----------------------------------------------------------------------------------------------------
# Imports
# ----------------------------------------------------------------------------------------------------


class _Tune:
    """``ray.tune``, imported when something is asked of it; where ray does not work, reporting to it does
    nothing.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # a debugger or copy looks around
            raise AttributeError(name)
        before = set(sys.modules)
        try:
            return getattr(importlib.import_module("ray.tune"), name)
        except Exception:
            for module in set(sys.modules) - before:  # a half-imported ray would fail differently next time
                if module.split(".")[0] == "ray":
                    del sys.modules[module]
            if name == "report":
                return lambda *_args, **_metrics: None
            raise


@defect(
    name="ray-import",
    issues="#1518 #1820 #2078 #2162",
    when="recbole.quick_start not imported yet",
    needed=lambda: "recbole.quick_start.quick_start" not in sys.modules,
    until="RecBole imports ray where it tunes hyper-parameters",
)
def _ray_import() -> None:
    """recbole.quick_start imports ray, which only hyper-parameter tuning needs, and which fails without
    setuptools<82, with NumPy 2, or where it is not installed; where it works it takes half a second.
    """
    with _stand_in("ray", tune=_Tune()):
        importlib.import_module("recbole.quick_start")


def _kmeans_is_missing() -> bool:
    try:
        importlib.import_module("recbole.model.general_recommender")
    except ModuleNotFoundError as error:
        return error.name == "kmeans_pytorch"
    return False


@defect(
    name="kmeans-import",
    issues="#2105",
    when="RecBole 1.2.0 without kmeans_pytorch",
    needed=_kmeans_is_missing,
    until="RecBole 1.2.0 is given up",
)
def _kmeans_import() -> None:
    """get_model fails for every model, because LDiffRec's file imports kmeans_pytorch, which RecBole does
    not require.
    """

    def kmeans(*_args: Any, **_kwargs: Any) -> None:
        raise ConfigError("LDiffRec with several clusters needs kmeans_pytorch: pip install kmeans-pytorch")

    with _stand_in("kmeans_pytorch", kmeans=kmeans):
        importlib.import_module("recbole.model.general_recommender")


@defect(name="anomaly-mode", issues="none known", until="RecBole's sine.py no longer switches it on")
def _anomaly_mode() -> None:
    """Importing any sequential model imports SINE's file, which switches PyTorch's anomaly mode on for the
    process, so that every training step is slower. Whoever switched it on keeps it, unless SINE's file came
    first.
    """
    before = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    if "recbole.model.sequential_recommender.sine" in sys.modules:
        before = False, True  # whose doing it was cannot be seen any more
    importlib.import_module("recbole.model.sequential_recommender.sine")
    torch.autograd.set_detect_anomaly(*before)


@defect(name="missing-model-message", issues="#2172", until="RecBole says which name is wrong")
def _missing_model_message() -> None:
    """get_model of an unknown name says "No module named 'lightgbm'" where that is not installed, and of a name in
    other letters (cafe) that a module has no such attribute, not that there is no such model.
    """
    from recbole.utils import get_model

    def patient(model_name):  # type: ignore[no-untyped-def]
        from recbole.utils.utils import get_model

        from recbole_cafe.host.registry import unknown_model

        if not model_name.isidentifier():  # it becomes a part of a module's name
            raise unknown_model(model_name)
        try:
            return get_model.stock(model_name)
        except ModuleNotFoundError as error:
            libraries = ("lightgbm", "xgboost")
            if error.name not in libraries or model_name.lower() in libraries:
                raise
        except ValueError as error:
            if not str(error).startswith("`model_name`"):
                raise
        except AttributeError as error:
            if error.name != model_name:
                raise
        raise unknown_model(model_name)

    _redirect(get_model, patient)


# ----------------------------------------------------------------------------------------------------
# Config
# ----------------------------------------------------------------------------------------------------


@defect(name="config-eval", issues="none known", until="RecBole parses values instead of evaluating them")
def _config_eval() -> None:
    """Text from the command line and from config_dict is run as Python code."""
    from recbole.config import Config

    from recbole_cafe.files.literals import parse_value

    def _convert_config_dict(_self: Config, config_dict: dict[str, Any]) -> dict[str, Any]:
        texts = {key: value for key, value in config_dict.items() if isinstance(value, str)}
        config_dict.update((key, parse_value(text)) for key, text in texts.items())
        return config_dict

    Config._convert_config_dict = _convert_config_dict


@defect(
    name="ce-default-negatives",
    issues="#955 #1208",
    until="RecBole's default for train_neg_sample_args is None",
)
def _ce_default_negatives() -> None:
    """A sequential model with loss_type CE fails on RecBole's own default ("train_neg_sample_args should be
    None when the loss_type is CE"). What the user sets is still checked.
    """
    from recbole.config import Config
    from recbole.utils import ModelType

    @_wrap(Config, "_set_default_parameters")
    def _set_default_parameters(stock: Callable, self: Config) -> None:
        final = self.final_config_dict
        complains = final.get("loss_type") == "CE" and not hasattr(self.model_class, "input_type")
        if (
            complains
            and final["MODEL_TYPE"] == ModelType.SEQUENTIAL
            and "train_neg_sample_args" not in self.external_config_dict
        ):
            final["train_neg_sample_args"] = None
        stock(self)


# ----------------------------------------------------------------------------------------------------
# Logs
# ----------------------------------------------------------------------------------------------------


class NoTensorboard:
    """What RecBole's trainers ask of a SummaryWriter, written nowhere."""

    def add_scalar(self, *arguments: Any, **options: Any) -> None:
        """Write nothing."""

    def add_hparams(self, *arguments: Any, **options: Any) -> None:
        """Write nothing."""

    def flush(self) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Close nothing."""


@defect(name="log-files", issues="none known", when="log/ cannot be written (tested in the call)",
        until="RecBole needs no log file")  # fmt: skip
def _log_files() -> None:
    """Loading or training a model fails where log/ or log_tensorboard/ of the working folder cannot be written
    (read-only containers). The log then goes to the console alone, which is said once.
    """
    from recbole.utils import get_tensorboard, init_logger

    def patient_logger(config):  # type: ignore[no-untyped-def]
        import logging

        from recbole.utils.logger import init_logger, log_colors_config

        try:
            init_logger.stock(config)
            return
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}"
        import colorlog

        level = getattr(logging, str(config["state"]).upper(), logging.INFO)  # as RecBole reads `state`
        console = logging.StreamHandler()
        console.setLevel(level)
        form = "%(log_color)s%(asctime)-15s %(levelname)s  %(message)s"
        console.setFormatter(colorlog.ColoredFormatter(form, "%d %b %H:%M", log_colors=log_colors_config))
        logging.basicConfig(level=level, handlers=[console])
        if "told" not in vars(init_logger):
            init_logger.told = True
            logging.getLogger().warning(f"no log file can be written here ({reason}); the log goes to the console only")

    def patient_tensorboard(logger):  # type: ignore[no-untyped-def]
        from recbole.utils.utils import get_tensorboard

        from recbole_cafe.host.compat import NoTensorboard

        try:
            return get_tensorboard.stock(logger)
        except OSError:
            return NoTensorboard()

    _redirect(init_logger, patient_logger)
    _redirect(get_tensorboard, patient_tensorboard)


# ----------------------------------------------------------------------------------------------------
# Checkpoints and evaluation
# ----------------------------------------------------------------------------------------------------


@defect(name="checkpoint", issues="#2212", until="RecBole stores plain data")
def _checkpoint() -> None:
    """Trainers pickle the Config into the checkpoint, in a protocol which torch>=2.6 refuses to load, so
    training ends in an UnpicklingError before the test; older torch runs whatever code is in the file. They
    also write straight to the final name, so a crash while saving destroys the best model.
    """
    from recbole.model.abstract_recommender import AbstractRecommender
    from recbole.trainer import trainer

    # recbole_cafe.train.checkpoint is imported in the calls: this runs when RecBole is imported, which may be in the
    # middle of that module's import.
    def save(state: dict[str, Any], path: str, **_pickle_protocol: Any) -> None:
        from recbole_cafe.train import checkpoint

        checkpoint.save(path, state)

    def load(*args: Any, **kwargs: Any) -> Any:
        from recbole_cafe.train import checkpoint

        return checkpoint.load(*args, **kwargs)

    trainer.torch = _Overlay(torch, save=save, load=load)

    @_wrap(AbstractRecommender, "load_other_parameter")
    def load_other_parameter(stock: Callable, self: AbstractRecommender, para: dict[str, Any] | None) -> None:
        from recbole_cafe.train import checkpoint

        stock(self, checkpoint.decode(para))


def _quick_start_imports() -> bool:
    try:
        importlib.import_module("recbole.quick_start")
    except Exception:  # a broken ray, and the entry for it switched off
        return False
    return True


@defect(
    name="load-data-and-model",
    issues="#2212",
    when="recbole.quick_start can be imported",
    needed=_quick_start_imports,
    until="RecBole stores plain data",
)
def _load_data_and_model() -> None:
    """recbole.quick_start.load_data_and_model expects a pickled Config in the checkpoint."""
    from recbole.quick_start import load_data_and_model

    def safely(model_file, trust_checkpoint=False):  # type: ignore[no-untyped-def]
        from recbole_cafe.host.reload import load_data_and_model

        return load_data_and_model(model_file, trust_checkpoint)

    _redirect(load_data_and_model, safely)


def _collector_moves_everything() -> bool:
    from recbole.evaluator import Collector

    return "cpu" in Collector.get_data_struct.__code__.co_names


@defect(
    name="collector-cpu",
    issues="#2191 #2194",
    when="RecBole 1.2.1",
    needed=_collector_moves_everything,
    until="RecBole calls cpu() on tensors only",
)
def _collector_cpu() -> None:
    """The metrics ItemCoverage, GiniIndex, AveragePopularity and TailPercentage fail ("'int' object has no
    attribute 'cpu'").
    """
    from recbole.evaluator import Collector

    @_wrap(Collector, "get_data_struct")
    def get_data_struct(stock: Callable, self: Collector) -> Any:
        collected = self.data_struct._data_dict
        counts = {key: value for key, value in collected.items() if not isinstance(value, torch.Tensor)}
        for key in counts:
            del collected[key]
        struct = stock(self)
        collected.update(counts)
        struct._data_dict.update(copy.deepcopy(counts))
        return struct


# ----------------------------------------------------------------------------------------------------
# Several processes
# ----------------------------------------------------------------------------------------------------


GROUP_TIMEOUT = 600  # seconds; of RecBole's own runs


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


@defect(name="download-barrier", issues="#1989 #2050", until="RecBole asks whether there are other processes")
def _download_barrier() -> None:
    """After downloading a dataset a single process waits for a group of processes which does not exist, and
    fails.
    """
    from recbole.data.dataset import dataset

    def barrier(*args: Any, **kwargs: Any) -> Any:
        return dist.barrier(*args, **kwargs) if _is_distributed() else None

    dataset.torch = _Overlay(torch, distributed=_Overlay(dist, barrier=barrier))


@defect(
    name="cpu-ddp",
    issues="none known",
    when="several processes (tested in the call)",
    until="RecBole chooses the backend by device",
)
def _cpu_ddp() -> None:
    """Several processes need NCCL and CUDA devices, and meet where torchrun is already listening; now they use gloo
    on the CPU, and torchrun's own meeting point.
    """
    from recbole.config import Config
    from recbole.trainer.trainer import AbstractTrainer

    @_wrap(Config, "_init_device")
    def _init_device(stock: Callable, self: Config) -> None:
        final = self.final_config_dict
        if "local_rank" not in final:
            stock(self)
            return
        rank = final.pop("local_rank")
        stock(self)  # as for a single process: which device is there?
        final["local_rank"] = rank
        on_gpu = final["device"].type == "cuda"
        final["single_spec"] = False
        there = "env://" if "TORCHELASTIC_RUN_ID" in os.environ else f"tcp://{final['ip']}:{final['port']}"
        dist.init_process_group(
            backend="nccl" if on_gpu else "gloo", rank=rank + final["offset"], world_size=final["world_size"],
            init_method=there, timeout=timedelta(seconds=final.get("group_timeout") or GROUP_TIMEOUT),
        )  # fmt: skip
        if on_gpu:
            final["device"] = torch.device("cuda", rank)
            torch.cuda.set_device(rank)
        if rank + final["offset"] != 0:  # one voice is enough
            final.update(state="error", show_progress=False, verbose=False)

    @_wrap(AbstractTrainer, "__init__")
    def __init__(stock: Callable, self: AbstractTrainer, config: Config, model: torch.nn.Module) -> None:
        if config["single_spec"] or config["device"].type == "cuda":
            stock(self, config, model)
            return
        self.config, self.model = config, model
        # SyncBatchNorm is for CUDA only, and device_ids for devices which have numbers
        self.distributed_model = torch.nn.parallel.DistributedDataParallel(model)


@defect(
    name="ddp-files",
    issues="#2173",
    when="several processes (tested in the call)",
    until="RecBole agrees on the file and waits for it",
)
def _ddp_files() -> None:
    """Each process names the checkpoint by its own clock and loads it without waiting until it is written,
    and all make the same folders at once: FileNotFoundError, EOFError or FileExistsError, now and then.
    """
    from recbole.trainer.trainer import Trainer
    from recbole.utils import ensure_dir

    def make_folder(dir_path):  # type: ignore[no-untyped-def]
        import os

        os.makedirs(dir_path, exist_ok=True)

    _redirect(ensure_dir, make_folder)

    @_wrap(Trainer, "__init__")
    def __init__(stock: Callable, self: Trainer, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        if not self.config["single_spec"]:
            name = [self.saved_model_file]
            dist.broadcast_object_list(name, src=0)
            self.saved_model_file = name[0]

    @_wrap(Trainer, "evaluate")
    def evaluate(
        stock: Callable,
        self: Trainer,
        eval_data: Any,
        load_best_model: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if load_best_model and not self.config["single_spec"]:
            dist.barrier()
        return stock(self, eval_data, load_best_model, *args, **kwargs)
