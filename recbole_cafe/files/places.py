"""Where data sets and the files of the package lie."""

from __future__ import annotations

from pathlib import Path

from recbole_cafe.files.whole import restore

PACKAGE = Path(__file__).resolve().parents[1]


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
