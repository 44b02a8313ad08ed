"""Histories and intents from atomic files.

RecBole's `SequentialDataset` writes one dense row of length L per interaction, sorts by float32 time (which loses the
order of stamps closer than 128 seconds) and copies all of it at each split. Here the interactions are kept once, in
exact order, as flat arrays; a row is a position in them, and its history is gathered when a batch asks for it.
Rows, splits and item ids are RecBole's own; samplers, loaders and `case_study` work on them unchanged.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType
from torch import Tensor

from recbole_cafe.config import Config, data_folders
from recbole_cafe.data.atomic import read_header, restore
from recbole_cafe.data.reader import ColumnarMixin
from recbole_cafe.data.rows import ROW, TargetRows, narrow, select, wide
from recbole_cafe.data.simulate import ensure_amazon, is_simulated

TIE_ORDERS = ("file", "random")
TRAIN_LAYOUTS = ("all", "last")
INTENT_CHOICES = ("first", "last", "rarest")


class DataError(ValueError):
    """The data do not fit what was asked for. The message names the file or field and what is there."""


class ExactOrderMixin(ColumnarMixin):
    """Time order as the file has it: float64, stable, ties in file order or shuffled by seed.

    Mixed into any RecBole Dataset class whose model is trained through recbole_cafe.
    """

    def _load_data(self, token: str, dataset_path: str) -> None:
        folder = Path(dataset_path)
        restore(folder)  # if a replacement was killed half-way
        if not folder.is_dir():
            self._obtain(token, folder)
        if folder.is_dir() and not self.config["benchmark_filename"]:
            read_header(folder / f"{token}.inter")  # a clear error where RecBole would fail to unpack a header field
        if not isinstance(self.config, Config) and (manifest := is_simulated(folder)):
            self.logger.warning(simulated_notice(token, manifest))  # recbole_cafe.run has said it already
        super()._load_data(token, dataset_path)

    def _obtain(self, token: str, folder: Path) -> None:
        """A folder that is not there: make the simulated `amazon`, leave to RecBole what it can download."""
        given = "data_path" in getattr(self.config, "external_config_dict", {"data_path": None})
        if token == "amazon" and not given:
            self.logger.warning(f"{folder} does not exist: making the simulated sample there")
            ensure_amazon(folder)
        elif self._get_download_url("url", allow_none=True) is None:
            there = sorted(p.parent.name for p in folder.parent.glob("*/*.inter"))
            looked = [str(folder)] if given else [str(place / token) for place in data_folders()]
            raise DataError(
                f"no data set {token!r}: looked for {', '.join(looked)}; "
                f"data sets in {folder.parent}: {', '.join(there) or 'none'}. Set data_path to the folder that holds "
                f"the folder {token}"
            )

    def _remove_duplication(self) -> None:
        """RecBole's `rm_dup_inter`, with a stable sort (RecBole's may swap ties) and the file's order kept."""
        keep = self.config["rm_dup_inter"]
        if keep is None:
            return
        self._check_field("uid_field", "iid_field")
        before = len(self.inter_feat)
        if self.time_field in self.inter_feat:
            in_time = self.inter_feat.sort_values(by=self.time_field, kind="stable")
        else:
            in_time = self.inter_feat
        kept = in_time.drop_duplicates(subset=[self.uid_field, self.iid_field], keep=keep).sort_index()
        self.inter_feat = kept
        if before > len(kept):
            self.logger.info(f"rm_dup_inter={keep}: {before - len(kept)} of {before} interactions dropped")

    def _data_filtering(self) -> None:
        before = len(self.inter_feat)
        super()._data_filtering()
        if before > len(self.inter_feat):
            self.logger.info(
                f"filters dropped {before - len(self.inter_feat)} of {before} interactions of {self.dataset_name}"
            )
        self._time = self._exact_time()

    def _exact_time(self) -> np.ndarray | None:
        """The time column in float64 before any normalisation; rows are in file order."""
        if self.time_field not in self.inter_feat:
            return None
        time = self.inter_feat[self.time_field].to_numpy(dtype=np.float64)
        if len(missing := np.flatnonzero(np.isnan(time))):
            row = self.inter_feat.iloc[missing[0]]
            raise DataError(
                f"{self.dataset_name}.inter: {len(missing)} interactions have no {self.time_field}, the first is that "
                f"of {self.uid_field} {self._token(self.uid_field, row[self.uid_field])!r} with {self.iid_field} "
                f"{self._token(self.iid_field, row[self.iid_field])!r}; "
                f"expected a number"
            )
        return time

    def _exact_order(self, by_user: bool) -> np.ndarray:
        """Permutation of the file's rows into (user,) time order."""
        n = len(self.inter_feat)
        if self._time is None:
            raise DataError(
                f"{self.dataset_name} has no column {self.time_field!r} loaded, and the order of interactions is by "
                f"time: set TIME_FIELD, or load_col so that inter has it (loaded: {list(self.inter_feat)})"
            )
        tie_order = self.config["tie_order"] or "file"
        if tie_order not in TIE_ORDERS:
            raise DataError(f"tie_order={tie_order!r} is not one of {', '.join(TIE_ORDERS)}")
        keys = [self._time]  # the last key is the first to sort by; ties stay in the order of the file
        if by_user:
            keys.append(self.inter_feat[self.uid_field].to_numpy())
        if tie_order == "random":
            tie = np.arange(n)
            np.random.default_rng(self.config["seed"]).shuffle(tie)
            keys.insert(0, tie)
        elif _is_sorted(keys):
            return np.arange(n)
        return np.lexsort(keys)

    def _keep_flat(self, columns: dict[str, Tensor]) -> None:
        """Remember the interactions in (user, time) order; rows refer to them by their column ROW."""
        uid = columns[self.uid_field].numpy()
        is_first = np.r_[True, uid[1:] != uid[:-1]]
        position = np.arange(len(uid), dtype=np.int32)
        self.flat = Interaction(columns)
        self.user_start = torch.from_numpy(np.maximum.accumulate(np.where(is_first, position, 0).astype(np.int32)))

    def all_interactions(self) -> tuple[np.ndarray, np.ndarray]:
        """User and item id of every interaction of the data set, whatever the split: int32 [P] each."""
        return self.flat[self.uid_field].numpy(), self.flat[self.iid_field].numpy()

    def history_items(self, index: np.ndarray) -> list[np.ndarray]:
        """For each row, all items its user interacted with before the row's target, however long ago."""
        row = self.inter_feat[ROW][torch.from_numpy(index)]
        items = self.flat[self.iid_field].numpy()
        return [items[a:b].astype(np.int64) for a, b in zip(self.user_start[row].tolist(), row.tolist(), strict=True)]

    def leave_one_out(self, group_by: str, leave_one_mode: str) -> list[Dataset]:
        """RecBole's leave-one-out split, the same rows in the same order, without a Python loop over rows."""
        counts = {"valid_and_test": 2, "valid_only": 1, "test_only": 1}
        if group_by is None or leave_one_mode not in counts:
            return super().leave_one_out(group_by, leave_one_mode)  # raises RecBole's own message
        uid = self.inter_feat[group_by].numpy()
        if not len(uid):
            raise DataError(f"{self.dataset_name}: no user has two interactions, there is nothing to predict")
        order = np.argsort(uid, kind="stable")  # rows are in time order, so within a user they stay in it
        uid = uid[order]
        start = np.flatnonzero(np.r_[True, uid[1:] != uid[:-1]])
        size = np.diff(start, append=len(uid))
        del uid
        listed = np.argsort(order[start])  # RecBole lists users in the order in which they first appear
        start, end, size = start[listed], (start + size)[listed], size[listed]
        held_out = np.minimum(counts[leave_one_mode], size - 1)
        parts = [order[_ranges(start, end - held_out)]]
        for back in (2, 1) if leave_one_mode == "valid_and_test" else (1,):
            parts.append(order[(end - back)[held_out >= back]])
        del order
        empty = np.array([], dtype=np.int64)
        if leave_one_mode == "valid_only":
            parts = [parts[0], parts[1], empty]
        elif leave_one_mode == "test_only":
            parts = [parts[0], empty, parts[1]]
        self._drop_unused_col()
        return [self.copy(select(self.inter_feat, index)) for index in parts]


class TimeOrderedDataset(ExactOrderMixin, Dataset):
    """RecBole's Dataset for general models (Pop, BPR, ItemKNN, ...) under the same order and split."""

    def _change_feat_format(self) -> None:
        by_user, by_time = self._exact_order(by_user=True), self._exact_order(by_user=False)
        self._time = None
        super()._change_feat_format()
        order = torch.from_numpy(by_user)
        self._keep_flat({field: narrow(self.inter_feat[field])[order] for field in (self.uid_field, self.iid_field)})
        row = np.empty(len(by_user), dtype=np.int32)
        row[by_user] = np.arange(len(by_user), dtype=np.int32)
        self.inter_feat[ROW] = torch.from_numpy(row)
        self.inter_feat = select(self.inter_feat, by_time)

    def sort(self, by: str | list[str], ascending: bool | list[bool] = True) -> None:
        """RecBole sorts by float32 time here; the rows already are in exact order."""
        if by != self.time_field or ascending is not True:
            super().sort(by=by, ascending=ascending)

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        """RecBole's rows, without our column."""
        rows = super().__getitem__(index, join=join)
        if ROW in rows:
            del rows[ROW]
        return rows


class SequenceDataset(ExactOrderMixin, SequentialDataset):
    """One row per target, histories gathered on demand; one row per user for training.

    With ``train_layout: all`` (the default of our models) the train split holds, for each user, the row of the last
    train interaction and every L-th row before it: windows that together have each interaction as a target exactly
    once. ``train_layout: last`` keeps RecBole's prefix rows.

    With `window_prob` a window of a user with more than L targets is, each time it is read, moved with this probability
    to a uniformly drawn place in the user's train interactions (SSE-PT++, Wu et al., RecSys 2020). Items then stand at
    other positions and behind other histories in each epoch, and an epoch does not have each target exactly once.

    Attributes:
        flat: the interactions in (user, time) order, one tensor [P] per column of the .inter file.
        user_start: [P] where the user of each interaction starts.
    """

    def _change_feat_format(self) -> None:
        if self.config["benchmark_filename"] is not None:
            super()._change_feat_format()
            return
        order = self._exact_order(by_user=True)
        # RecBole then sorts all rows by time, stably: by (time, user, order within the user)
        by_time = np.argsort(self._time[order], kind="stable")
        self._time = None
        self._time_rank = torch.empty(len(order), dtype=torch.int32)
        self._time_rank[torch.from_numpy(by_time)] = torch.arange(len(order), dtype=torch.int32)
        del by_time
        self._take_in(torch.from_numpy(order))
        self.window_rows = False
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        position = torch.arange(len(order), dtype=torch.int32)
        self.inter_feat = TargetRows(
            self.flat, self.user_start, self.item_list_length_field, self.max_item_list_len,
            position[self.user_start != position],  # all but each user's first
        )  # fmt: skip

    def _take_in(self, order: Tensor) -> None:
        """RecBole's change of tables into tensors, a column of the .inter file at a time: each table goes as soon as
        its tensors are there."""
        table, self.inter_feat, columns = self.inter_feat, None, {}
        for field in list(table):
            columns[field] = narrow(self._dataframe_to_interaction(table[[field]])[field])[order]
            del table[field]
        for name in self.feat_name_list:
            if name != "inter_feat":
                setattr(self, name, self._dataframe_to_interaction(getattr(self, name)))
        self._keep_flat(columns)
        self.inter_feat = self.flat

    def sort(self, by: str | list[str], ascending: bool | list[bool] = True) -> None:
        """RecBole's sort; by time, the exact rank instead of the float32 column."""
        if by == self.time_field and ascending is True and ROW in self.inter_feat:
            rank = self._time_rank[self.inter_feat[ROW]]
            self.inter_feat = select(self.inter_feat, np.argsort(rank.numpy()))
        else:
            super().sort(by=by, ascending=ascending)

    def build(self) -> list[SequentialDataset]:
        """RecBole's split; then, with ``train_layout: all``, the train split's rows become windows."""
        layout = self.config["train_layout"] or "last"
        if layout not in TRAIN_LAYOUTS:
            raise DataError(f"train_layout={layout!r} is not one of {', '.join(TRAIN_LAYOUTS)}")
        self.window_prob = self.config["window_prob"] or 0.0
        if not 0.0 <= self.window_prob <= 1.0 or (self.window_prob and layout != "all"):
            raise DataError(
                f"window_prob={self.window_prob} with train_layout={layout}: expected a probability, and 0 unless "
                f"train_layout=all, which alone has windows"
            )
        parts = super().build()
        if layout == "all" and self.config["benchmark_filename"] is not None:
            raise DataError("train_layout=all needs the histories; with benchmark_filename set train_layout=last")
        if layout == "all":
            parts[0] = parts[0].as_windows()
        return parts

    def as_windows(self) -> SequenceDataset:
        """This split with one row per user, cut into windows of L targets counted from the user's last row.

        Raises:
            DataError: the rows of a user are not his first ones without a gap, so that windows would train on others.
        """
        row, user = self.inter_feat[ROW].numpy(), self.inter_feat[self.uid_field].numpy()
        size = np.bincount(user, minlength=self.user_num)
        last = np.zeros(len(size), dtype=np.int64)  # the position of each user's last row
        np.maximum.at(last, user, row)
        there = size > 0
        if not np.array_equal(size[there], (last - self.user_start.numpy()[last])[there]):
            raise DataError(
                "train_layout=all needs a split in which each user's train interactions come first (LS or TS, ordered "
                "by time); set train_layout=last"
            )
        windows = self.copy(select(self.inter_feat, np.flatnonzero((last[user] - row) % self.max_item_list_len == 0)))
        windows.window_rows = True
        windows._last_of_user = torch.from_numpy(last)
        return windows

    def _moved(self, row: Tensor) -> Tensor:
        """SSE-PT++: with probability `window_prob`, and where there is more than one place, another window of the user.

        Args:
            row: [b] positions of the windows' last targets.
        """
        oldest = self.user_start[row].long() + self.max_item_list_len  # last target of the user's first full window
        places = self._last_of_user[wide(self.flat[self.uid_field][row])] - oldest + 1
        move = (torch.rand(row.shape) < self.window_prob) & (places > 1)
        return torch.where(move, oldest + (torch.rand(row.shape, dtype=torch.float64) * places).long(), row)

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        """Rows with their histories: `<field>_list` [B, L] for each field of the .inter file, padded on the right."""
        if self.window_rows and self.window_prob:
            rows = self.inter_feat.gather(index, self._moved)
        else:
            rows = super().__getitem__(index, join=False)
        if ROW not in rows:
            return self.join(rows) if join else rows
        reads = getattr(self.config.model_class, "net", None)
        row = rows[ROW].reshape(-1)
        length = rows[self.item_list_length_field].reshape(-1)
        steps = torch.arange(self.max_item_list_len)
        real = steps < length[:, None]  # [B, L]
        at = ((row - length)[:, None] + steps).where(real, 0)
        columns = [self.iid_field] if reads else [f for f in self.flat if f != self.uid_field]
        for field in columns:
            value = wide(self.flat[field][at])
            mask = real.reshape(real.shape + (1,) * (value.dim() - 2))
            rows[getattr(self, f"{field}_list_field")] = value.where(mask, torch.zeros((), dtype=value.dtype))
        del rows[ROW]
        return rows if reads or not join else self.join(rows)

    # Interactions behind the rows, for whoever counts them ------------------------------------------------------------

    def interactions(self) -> Tensor:
        """Indices into `flat` of the interactions this split's rows stand for, each once.

        These are the rows' targets (all targets of a window) and, as in RecBole, the first item of a user whose
        first row is here.
        """
        if ROW not in self.inter_feat:
            raise DataError("a dataset with benchmark_filename keeps no flat interactions")
        row = self.inter_feat[ROW]
        length = self.inter_feat[self.item_list_length_field]
        first = row - length
        oldest = first == self.user_start[row]  # the window reaches back to the user's first item
        if self.window_rows:
            covered = torch.cat([row - k for k in range(self.max_item_list_len)])
            keep = torch.cat([length > k for k in range(self.max_item_list_len)])
            covered = covered[keep]
        else:
            covered, oldest = row, oldest & (length == 1)
        return torch.unique(torch.cat((covered, first[oldest])))

    def user_items(self) -> tuple[Tensor, Tensor]:
        """User and item id of each interaction of this split, [P] each."""
        at = self.interactions()
        return wide(self.flat[self.uid_field][at]), wide(self.flat[self.iid_field][at])

    def _counter(self, field: str) -> Counter:
        if not self.window_rows:
            return Counter(self.inter_feat[field].numpy())
        return Counter(self.flat[field][self.interactions()].numpy())

    @property
    def item_counter(self) -> Counter:
        """Interactions per item of this split; RecBole's popularity metrics read it."""
        return self._counter(self.iid_field)

    @property
    def user_counter(self) -> Counter:
        """Interactions per user of this split."""
        return self._counter(self.uid_field)

    def inter_matrix(self, form: str = "coo", value_field: str | None = None) -> Any:
        """RecBole's sparse user-item matrix of this split's interactions."""
        if ROW not in self.inter_feat:
            return super().inter_matrix(form, value_field)
        rows = select(self.flat, self.interactions().numpy())
        return self._create_sparse_matrix(rows, self.uid_field, self.iid_field, form, value_field)


def _is_sorted(keys: list[np.ndarray]) -> bool:
    """Whether rows are in the order of these keys already; the last one counts first, as in `np.lexsort`."""
    in_order = np.ones(len(keys[0]) - 1, dtype=bool)  # each row and the next, by the keys so far; equal is in order
    for key in keys:
        in_order = (key[1:] > key[:-1]) | (key[1:] == key[:-1]) & in_order
    return bool(in_order.all())


def _ranges(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1, ... end[0] - 1, start[1], ... as one array."""
    size = end - start
    return np.repeat(start - (np.cumsum(size) - size), size) + np.arange(size.sum())


# Intents ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ItemIntents:
    """The intent of every item.

    Attributes:
        item2intent: [V]; 0 for padding, 1..C-1 an intent, C for an item without one.
        n_intents: C, padding included.
        n_without: how many items have none.
    """

    item2intent: Tensor
    n_intents: int
    n_without: int


def item_intents(config: Any, dataset: Dataset) -> ItemIntents:
    """Read the column INTENT_FIELD of the .item file.

    Raises:
        DataError: no .item file, no such column, a column that is not made of tokens, or a column with several tokens
            per item and no `intent_from`. The message lists what is there.
    """
    field = config["INTENT_FIELD"]
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else []
        raise DataError(f"{path} does not exist; the intent of each item is read from it. In the folder: {there}")
    header = read_header(path)
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
    item2intent = column.clone()
    without = item2intent == 0
    without[0] = False
    item2intent[without] = n_intents
    n_without = int(without.sum())
    if n_without:
        dataset.logger.warning(
            f"{n_without} of {len(item2intent) - 1} items have no {field} in {path.name}; they share one 'no intent' "
            f"id and are scored on item relevance with a neutral intent"
        )
    return ItemIntents(item2intent, n_intents, n_without)


def _as_tensor(dataset: Dataset, field: str) -> Tensor:
    column = dataset.item_feat[field]
    if isinstance(column, Tensor):
        return column
    return dataset._dataframe_to_interaction(dataset.item_feat[[field]])[field]  # before `build`, it is a DataFrame


def _one_of_several(column: Tensor, choice: str | None, path: Path, field: str) -> Tensor:
    """column: [V, S] tokens padded with 0 on the right. Returns [V]."""
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


def simulated_notice(name: str, manifest: dict) -> str:
    """What every run on simulated data says first. manifest: from `is_simulated`."""
    return (
        f"dataset {name!r} is SIMULATED (generator {manifest.get('generator')}, seed "
        f"{manifest.get('parameters', {}).get('seed')}), not real data: no result on it says anything about Amazon. "
        f"To use real data, put {name}.inter and {name}.item in a folder <data_path>/{name}; the README.md in its "
        f"folder says how."
    )


def statistics(dataset: Dataset, config: Any) -> dict[str, Any]:
    """Counts of a dataset, for the log and the result file (call before the split)."""
    n_users, n_items = dataset.user_num - 1, dataset.item_num - 1
    n = len(dataset.flat) if hasattr(dataset, "flat") else len(dataset.inter_feat)
    facts = {
        "users": int(n_users),
        "items": int(n_items),
        "interactions": int(n),
        "interactions_per_user": n / max(n_users, 1),
        "interactions_per_item": n / max(n_items, 1),
    }
    field = config["INTENT_FIELD"]
    if field and dataset.field2type.get(field) in (FeatureType.TOKEN, FeatureType.TOKEN_SEQ):
        facts["intents"] = int(dataset.num(field) - 1)
    return facts
