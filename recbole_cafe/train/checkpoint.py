"""Checkpoints as plain data: the one place which writes and reads them.

A file written here holds tensors, numbers, strings, lists, tuples and dicts only, so
``torch.load(path, weights_only=True)`` opens it in any process, whether or not that one knows this package
or RecBole, and opening it cannot run code. RecBole itself pickles its Config object into the file, which
torch>=2.6 refuses to open (RecBole issue #2212) and which older torch runs as code.

What is not plain is stored as a small dict marked with ``MARK`` (see :func:`encode`), to come back as it was.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

from recbole_cafe.errors import DataError
from recbole_cafe.files.whole import written_whole
from recbole_cafe.train.archive import DamagedError, seal, verify

SEALED = frozenset(["random"])  # parts that no version has written without a digest of the file
MARK = "__recbole_cafe__"

_logger = logging.getLogger("recbole_cafe.train.checkpoint")


class CheckpointError(DataError):
    """The file is not a checkpoint, a damaged one, or another run's."""


class UnsafeCheckpointError(CheckpointError):
    """The file can only be opened by running the pickled code in it."""


# ----------------------------------------------------------------------------------------------------
# Objects <-> plain data
# ----------------------------------------------------------------------------------------------------


def encode(obj: Any, where: str = "") -> Any:
    """Return ``obj`` as plain data and tensors.

    Tensors, numbers, strings, lists, tuples and dicts stay what they are; NumPy scalars become Python's,
    paths strings. NumPy arrays, SciPy sparse matrices, RecBole's enums, ``torch.device``, sets and bytes
    become marked dicts, which :func:`decode` turns back. Encoding twice is the same as once.

    Args:
        obj: what to encode.
        where: the key path of ``obj``, for the message.

    Returns:
        the plain form.

    Raises:
        TypeError: some part of ``obj`` has no plain form; the message names its key path.
    """
    if obj is None or type(obj) in (bool, int, float, str):
        return obj
    if isinstance(obj, torch.Tensor):
        if obj.layout == torch.strided and obj.numel() * obj.element_size() > obj.untyped_storage().nbytes():
            obj = obj.detach().clone(memory_format=torch.contiguous_format)  # one number shown many times; see `load`
        return obj if isinstance(obj, torch.nn.Parameter) else obj.detach()
    if isinstance(obj, Enum):
        return _marked("enum", type=_enum_name(obj, where), name=obj.name)
    if isinstance(obj, np.generic):
        return encode(obj.item(), where)
    if scipy.sparse.issparse(obj):  # before dict, which a dok_matrix is too
        return _encode_sparse(obj, where)
    if isinstance(obj, dict):
        return _encode_dict(obj, where)
    if isinstance(obj, (list, tuple)):
        parts = [encode(part, f"{where}[{index}]") for index, part in enumerate(obj)]
        return tuple(parts) if isinstance(obj, tuple) else parts
    if isinstance(obj, (set, frozenset)):
        return _marked("set", items=[encode(part, f"{where}{{}}") for part in obj])
    if isinstance(obj, bytes):
        return _marked("bytes", data=torch.frombuffer(bytearray(obj), dtype=torch.uint8) if obj else None)
    if isinstance(obj, np.ndarray):
        return _encode_array(obj, where)
    if isinstance(obj, torch.device):
        return _marked("device", name=str(obj))
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    for base in (str, int, float):  # a subclass would be pickled as an object
        if isinstance(obj, base):
            return base(obj)
    kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
    raise TypeError(f"{where or 'the object'}: a {kind} has no plain form, so it cannot be kept in a checkpoint")


def decode(obj: Any) -> Any:
    """Return what :func:`encode` was given. Plain data stays as it is, so decoding twice is the same as once.

    Raises:
        CheckpointError: a marked dict of a kind this version does not know, or one that is not as `encode` makes it.
    """
    try:
        return _decode(obj)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, MemoryError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"a part that cannot be read ({type(error).__name__}: {error})") from error


def _decode(obj: Any) -> Any:
    if isinstance(obj, (list, tuple)):
        parts = [_decode(part) for part in obj]
        return tuple(parts) if isinstance(obj, tuple) else parts
    if not isinstance(obj, dict):
        return obj
    if MARK not in obj:
        return _like(obj, ((key, _decode(value)) for key, value in obj.items()))
    reader = _READERS.get(obj[MARK])
    if reader is None:
        raise CheckpointError(f"a part of kind {obj[MARK]!r}, which this version of recbole-cafe cannot read")
    return reader(obj)


def _marked(kind: str, **parts: Any) -> dict[str, Any]:
    return {MARK: kind, **parts}


def _like(template: dict, pairs: Iterator[tuple[Any, Any]]) -> dict:
    """A dict or OrderedDict of ``pairs``; a state_dict keeps the ``_metadata`` which torch hangs on it."""
    if type(template) is not OrderedDict:
        return dict(pairs)
    result: OrderedDict = OrderedDict(pairs)
    if "_metadata" in vars(template):
        result._metadata = template._metadata  # type: ignore[attr-defined]
    return result


def _encode_dict(obj: dict, where: str) -> dict:
    if MARK in obj:  # encoded already
        return obj
    return _like(
        obj,
        (
            (_encode_key(key, where), encode(value, f"{where}.{key}" if where else str(key)))
            for key, value in obj.items()
        ),
    )


def _encode_key(key: Any, where: str) -> Any:
    if isinstance(key, np.generic):
        key = key.item()
    if type(key) is tuple:
        return tuple(_encode_key(part, where) for part in key)
    if key is None or type(key) in (bool, int, float, str):
        return key
    raise TypeError(f"{where or 'the object'}: {key!r} cannot be a dict key in a checkpoint")


def _enum_name(obj: Enum, where: str) -> str:
    from recbole.utils import enum_type

    name = type(obj).__name__
    if vars(enum_type).get(name) is not type(obj):
        raise TypeError(f"{where or 'the object'}: {obj!r} is no enum of RecBole, so it cannot be kept")
    return name


def _encode_array(obj: np.ndarray, where: str) -> dict[str, Any]:
    if obj.dtype.hasobject:
        items = [encode(part, f"{where}[{index}]") for index, part in enumerate(obj.ravel().tolist())]
        return _marked("objects", items=items, shape=list(obj.shape))
    flat = np.array(obj, order="C", copy=True).reshape(-1)  # torch wants writable, contiguous memory
    as_bytes = obj.dtype.kind == "u"  # PyTorch 2.4 knows unsigned numbers wider than a byte and cannot save them
    try:
        data = torch.from_numpy(flat.view(np.uint8) if as_bytes else flat)
    except (TypeError, ValueError):  # text, dates, foreign byte order
        data = torch.from_numpy(flat.view(np.uint8))
    form = {"dtype": obj.dtype.str, "shape": list(obj.shape), "matrix": isinstance(obj, np.matrix)}
    return _marked("ndarray", data=data, **form)


def _encode_sparse(obj: Any, where: str) -> dict[str, Any]:
    compressed = obj.format in ("csr", "csc")
    stored = obj if compressed else obj.tocoo()
    names = ("data", "indices", "indptr") if compressed else ("data", "row", "col")
    parts = [_encode_array(np.asarray(getattr(stored, name)), where) for name in names]
    form = {"format": obj.format, "array": not scipy.sparse.isspmatrix(obj), "shape": list(obj.shape)}
    return _marked("sparse", parts=parts, **form)


def _decode_enum(obj: dict[str, Any]) -> Enum:
    from recbole.utils import enum_type

    kind = vars(enum_type).get(obj["type"])
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise CheckpointError(f"{obj['type']!r} is not an enum of RecBole")
    return kind[obj["name"]]


def _decode_array(obj: dict[str, Any]) -> np.ndarray:
    array = obj["data"].cpu().numpy().view(np.dtype(obj["dtype"])).reshape(obj["shape"])
    return np.asmatrix(array) if obj["matrix"] else array


def _decode_objects(obj: dict[str, Any]) -> np.ndarray:
    array = np.empty(len(obj["items"]), dtype=object)
    array[:] = _decode(obj["items"])
    return array.reshape(obj["shape"])


def _decode_sparse(obj: dict[str, Any]) -> Any:
    data, *places = (_decode_array(part) for part in obj["parts"])
    compressed = obj["format"] in ("csr", "csc")
    kind = f"{obj['format'] if compressed else 'coo'}_{'array' if obj['array'] else 'matrix'}"
    parts = (data, *places) if compressed else (data, tuple(places))
    return vars(scipy.sparse)[kind](parts, shape=tuple(obj["shape"])).asformat(obj["format"])


_READERS = {
    "enum": _decode_enum,
    "ndarray": _decode_array,
    "objects": _decode_objects,
    "sparse": _decode_sparse,
    "set": lambda obj: {_decode(part) for part in obj["items"]},
    "bytes": lambda obj: b"" if obj["data"] is None else obj["data"].cpu().numpy().tobytes(),
    "device": lambda obj: torch.device(obj["name"]),
}


# ----------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------


def save(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` at once or not at all: who looks sees the old file or the whole new one.

    RecBole's keys keep their names and meaning (config, epoch, cur_step, best_valid_score, state_dict,
    other_parameter, optimizer), two of them in another form: ``config`` may be a RecBole Config and is stored
    as :func:`plain_config`; modules in ``other_parameter`` are left out, since their weights are in
    ``state_dict`` and the rest comes from the dataset.

    Args:
        path: the file.
        state: what to keep.

    Raises:
        TypeError: a part which has no plain form; nothing is written.
        OutputError: the disk is full; what was at `path` stays.
    """
    state = dict(state)
    if not isinstance(state.get("config"), (dict, type(None))):  # RecBole's Config
        state["config"] = plain_config(state["config"])
    other = state.get("other_parameter")
    if isinstance(other, dict):
        state["other_parameter"] = {k: v for k, v in other.items() if not isinstance(v, torch.nn.Module)}
    state = encode(state)
    with written_whole(Path(path)) as file:
        torch.save(state, file, pickle_protocol=2)  # a weights-only reader knows no later protocol
        seal(file)


def load(
    path: str | os.PathLike, map_location: Any = None, trust_checkpoint: bool = False, mmap: bool = False
) -> dict[str, Any]:
    """Return the state stored in ``path``, its ``config`` as a plain dict (see :func:`plain_config`).

    Args:
        path: a file written by :func:`save`, or by RecBole itself if ``trust_checkpoint``.
        map_location: as in ``torch.load``.
        trust_checkpoint: also open files which need unpickling, **which runs whatever code is in them**.
        mmap: read tensors when they are used instead of all at once, without looking for damage first. For files this
            process has just written, and for a look at what is not a tensor.

    Raises:
        CheckpointError: there is no such file, or it is damaged or no checkpoint. Before anything is used its digest is
            compared (of a file without one, the archive's checksums), and nothing takes more memory than the file has
            bytes.
        UnsafeCheckpointError: the file needs unpickling and ``trust_checkpoint`` is not set.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"there is no checkpoint file {path}")
    with open(path, "rb") as file:
        head = file.read(4)
    bare = head[:1] == b"\x80"  # a bare pickle, as torch wrote once, without checksums
    if bare and not trust_checkpoint:
        raise _unsafe(path, "it is a bare pickle")
    if not bare and head != b"PK\3\4":  # a zip archive with something in it
        size = os.path.getsize(path)
        raise CheckpointError(f"{path} is not a checkpoint, or only the beginning of one ({size} bytes)")
    try:
        sealed = not bare and not mmap and verify(Path(path))
        state = torch.load(path, map_location=map_location, weights_only=not trust_checkpoint, mmap=mmap or None)
    except DamagedError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    except pickle.UnpicklingError as error:
        if trust_checkpoint:
            raise CheckpointError(f"{path} is not a checkpoint, or a damaged one: {error}") from error
        raise _unsafe(path, _reason(error)) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # what is in the file decides what torch's reader stumbles over: any class
        raise CheckpointError(
            f"{path} is not a checkpoint, or a damaged one ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is not a checkpoint: it holds a {type(state).__name__}")
    if trust_checkpoint and not isinstance(state.get("config"), (dict, type(None))):  # RecBole's Config
        state["config"] = plain_config(state["config"])
    if SEALED & state.keys() and not sealed and not mmap:
        raise CheckpointError(f"{path} has lost its digest: it was changed after it was written")
    try:
        _refuse_growth(state, os.path.getsize(path))
        return decode(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def check_whole(path: str | os.PathLike) -> None:
    """Look for damage without reading a file into memory, as :func:`load` does without `mmap`.

    Raises:
        CheckpointError: it is damaged, or not there.
    """
    try:
        verify(Path(path))
    except (DamagedError, OSError) as error:
        raise CheckpointError(f"{os.fspath(path)} is damaged: {error}") from error


def _refuse_growth(state: dict[str, Any], size: int) -> None:
    """A file of few bytes must not become much memory.

    A pickle can name one list many times over, and a tensor can show one number many times.

    Args:
        state: what was read.
        size: bytes of the file.

    Raises:
        CheckpointError: the state has more parts than the file has bytes, or a tensor more numbers than are stored.
    """
    stack: list[Any] = [state]
    parts = 0
    while stack:
        obj = stack.pop()
        parts += 1
        if parts > size:
            raise CheckpointError("its parts name one another over and over")
        if isinstance(obj, torch.Tensor):
            if obj.layout != torch.strided or obj.device.type == "meta":
                raise CheckpointError(f"a tensor of layout {obj.layout} on {obj.device}, expected plain numbers")
            if obj.numel() * obj.element_size() > obj.untyped_storage().nbytes():
                raise CheckpointError(f"a tensor of shape {tuple(obj.shape)} with fewer numbers stored than it has")
        elif isinstance(obj, dict):
            stack.extend(obj.values())
        elif isinstance(obj, (list, tuple, set, frozenset)):
            stack.extend(obj)


def part_of(state: dict[str, Any], key: str, kinds: type | tuple[type, ...], path: str | os.PathLike) -> Any:
    """A part of a checkpoint that has to be there.

    Args:
        state: from :func:`load`.
        key: its name.
        kinds: its type or types; True is no number.
        path: the file, for the message.

    Raises:
        CheckpointError: it is missing or of another type.
    """
    value = state.get(key)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        found = type(value).__name__ if key in state else "no such key"
        names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise CheckpointError(f"{os.fspath(path)}: {key} should be a {names}, found {found}")
    return value


def take_weights(model: Any, state: dict[str, Any], path: str | os.PathLike) -> None:
    """Put the weights of a checkpoint into a model of RecBole's or ours.

    Args:
        model: on the device of the tensors in `state`.
        state: from :func:`load`.
        path: the file, for the message.

    Raises:
        CheckpointError: names or shapes are not the model's.
    """
    weights = part_of(state, "state_dict", dict, path)
    try:
        model.load_state_dict(weights)
        model.load_other_parameter(state.get("other_parameter"))
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{os.fspath(path)} does not fit {type(model).__name__}: {error}") from error


def _unsafe(path: str, reason: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"{path} holds more than plain data ({reason}), and opening it would run the code in it. "
        "RecBole's own checkpoints are such files. If you made this one or trust who did, pass "
        "trust_checkpoint=True; recbole_cafe.train.checkpoint.save(path, recbole_cafe.train.checkpoint.load(path, "
        "trust_checkpoint=True)) turns it into a safe one."
    )


def _reason(error: Exception) -> str:
    """The part of torch's long message which says what was refused."""
    refused = re.search(
        r"Unsupported (?:global|operand|class)[^\n]*?(?= was not| by default|\.? Please|\n|$)", str(error)
    )
    return refused.group().strip() if refused else str(error).strip().splitlines()[0][:200]


# ----------------------------------------------------------------------------------------------------
# RecBole's Config
# ----------------------------------------------------------------------------------------------------


def plain_config(config: Any) -> dict[str, Any]:
    """Return the settings of a RecBole Config as plain data; of the model's class only the name, as ``model``.

    A setting which has no plain form (a function, say) is left out with a warning: it should not cost a
    trained model.
    """
    plain = {}
    for key, value in config.final_config_dict.items():
        try:
            plain[key] = encode(value, f"config.{key}")
        except TypeError as error:
            _logger.warning("%s. It is left out.", error)
    return plain
