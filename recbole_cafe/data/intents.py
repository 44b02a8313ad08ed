"""The intent of every item: the column INTENT_FIELD of the .item file, or made (recbole_cafe.data.auto_intents)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from recbole.data.dataset import Dataset
from torch import Tensor

from recbole_cafe.config.config import AUTO, CHOICES
from recbole_cafe.data.facts import ItemIntents
from recbole_cafe.data.reader import text_format
from recbole_cafe.errors import DataError
from recbole_cafe.files.atomic import read_header

INTENT_CHOICES = [choice for choice in CHOICES["intent_from"] if choice]


def item_intents(config: Any, dataset: Dataset) -> ItemIntents:
    """Read the column INTENT_FIELD of the items: of the .item file, or with `auto` the one that was made.

    Args:
        config: RecBole's Config.
        dataset: the data set, before or after `build`; with `auto` after it.

    Raises:
        DataError: no .item file, no such column, a column that is not made of tokens, or a column with several tokens
            per item and no `intent_from`. The message lists what is there. Or ``auto`` and a data set that makes none.
    """
    field = config["INTENT_FIELD"]
    if field == AUTO:
        if AUTO not in dataset.field2type:
            raise DataError(
                f"INTENT_FIELD={AUTO}: intents are made when the data set of a sequential model is split; "
                f"{dataset.dataset_name} ({type(dataset).__name__}) has none"
            )
        return _facts(dataset, dataset.item_feat[AUTO], "neighbour in the train split")
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    if not path.is_file():
        present = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else []
        raise DataError(f"{path} does not exist; the intent of each item is read from it. In the folder: {present}")
    header = read_header(path, text_format(config))
    if field not in header:
        raise DataError(
            f"{path} has no column {field!r} to read intents from; its columns are {_columns(header)}. "
            f"Set INTENT_FIELD to one of them"
        )
    kind = header[field]
    if kind not in ("token", "token_seq"):
        raise DataError(
            f"{path}: column {field!r} is of type {kind}, intents are tokens; expected token or token_seq, "
            f"the columns are {_columns(header)}"
        )
    if dataset.item_feat is None or field not in dataset.item_feat:
        loaded = [] if dataset.item_feat is None else list(dataset.item_feat)
        raise DataError(
            f"column {field!r} of {path} was not loaded (loaded: {loaded}); add it to load_col, e.g. "
            f"load_col: {{item: [{dataset.iid_field}, {field}]}}"
        )
    n_intents = dataset.num(field)
    if n_intents < 2:
        raise DataError(f"{path}: column {field!r} is empty for every item, there is no intent to learn")
    column = _as_tensor(dataset, field)
    if kind == "token_seq":
        column = _one_of_several(column, config["intent_from"], path, field)
    return _facts(dataset, column, f"{field} in {path.name}")


def _facts(dataset: Dataset, column: Tensor, what: str) -> ItemIntents:
    """The intents by item.

    Args:
        dataset: the data set.
        column: [V] ids of intents, 0 for none.
        what: the items without an intent lack, for the log.
    """
    item2intent, n_intents = column.clone(), dataset.num(dataset.config["INTENT_FIELD"])
    without = item2intent == 0
    without[0] = False
    item2intent[without] = n_intents
    n_without = int(without.sum())
    if n_without:
        dataset.logger.warning(
            f"{n_without} of {len(item2intent) - 1} items have no {what}; they share one 'no intent' id "
            f"and are scored on item relevance with a neutral intent"
        )
    return ItemIntents(item2intent, n_intents, n_without)


def _as_tensor(dataset: Dataset, field: str) -> Tensor:
    column = dataset.item_feat[field]
    if isinstance(column, Tensor):
        return column
    return dataset._dataframe_to_interaction(dataset.item_feat[[field]])[field]  # before `build`, it is a DataFrame


def _one_of_several(column: Tensor, choice: str | None, path: Path, field: str) -> Tensor:
    """The one intent of each item.

    Args:
        column: [V, S] tokens padded with 0 on the right.
        choice: `intent_from`.
        path: the .item file, for the message.
        field: its column, for the message.

    Returns:
        [V].
    """
    if choice not in INTENT_CHOICES:
        several = int(((column > 0).sum(1) > 1).sum())
        raise DataError(
            f"{path}: column {field!r} is a token_seq, {several} items have more than one token, and a model of "
            f"intents takes one per item: set intent_from to one of {', '.join(INTENT_CHOICES)} (got {choice!r})"
        )
    if choice == "first":
        return column[:, 0]
    if choice == "last":
        return column.gather(1, ((column > 0).sum(1) - 1).clamp(min=0)[:, None])[:, 0]
    frequency = torch.bincount(column[column > 0])
    # ties between equally rare tokens go to the earlier one, so that the choice does not depend on the sort
    count = torch.where(column > 0, frequency[column], torch.iinfo(torch.int64).max)
    return column.gather(1, count.argmin(1)[:, None])[:, 0]


def _columns(header: dict[str, str]) -> str:
    return ", ".join(f"{name}:{kind}" for name, kind in header.items())
