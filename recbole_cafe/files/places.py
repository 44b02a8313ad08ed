"""Where data sets and the files of the package lie."""

from __future__ import annotations

import tempfile
from pathlib import Path

from recbole_cafe.errors import ConfigError
from recbole_cafe.files.whole import restore

PACKAGE = Path(__file__).resolve().parents[1]


def check_folder(key: str, folder: str | Path) -> None:
    """Make a folder if it is missing, and raise unless a file can be written there.

    Called before hours of training, not after them.

    Args:
        key: what the folder was given for, for the error.
        folder: the folder.

    Raises:
        ConfigError: naming the key, the folder and the system's reason.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"{key}={folder} cannot be written to ({error.strerror}): set {key} to a folder that can"
        ) from error


def check_file(key: str, path: str | Path) -> None:
    """Raise unless a file can be written at a place; see :func:`check_folder`.

    Raises:
        ConfigError: naming the key, the file and the reason.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ConfigError(f"{key}={path} cannot be written: {error.strerror}") from error
    if path.is_dir():
        raise ConfigError(f"{key}={path} is a folder")


def data_folders() -> list[Path]:
    """List where a data set is looked for when no data_path is given, in this order."""
    return [Path("dataset_atomic"), PACKAGE.parent / "dataset_atomic", Path("dataset")]


def find_data(dataset: str) -> Path:
    """Find the folder that holds the folder `dataset`, or would hold it if it does not exist."""
    for folder in data_folders():
        restore(folder / dataset)  # if a replacement was killed half-way
        if (folder / dataset).is_dir():
            return folder
    return data_folders()[0] if dataset == "amazon" else data_folders()[-1]
