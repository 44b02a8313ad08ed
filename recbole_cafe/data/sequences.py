"""Histories gathered on demand: one row per target, and for training one row per user."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_cafe.config.config import AUTO
from recbole_cafe.config.signature import is_ours
from recbole_cafe.data.auto_intents import intents_of, put_into, told
from recbole_cafe.data.batch import next_items
from recbole_cafe.data.rows import ROW, TargetRows, narrow, select, wide
from recbole_cafe.data.time_order import ExactOrderMixin, TimeOrderedDataset
from recbole_cafe.errors import DataError
from recbole_cafe.files.auto_intents import AutoIntents

# RecBole's models that look up other rows of the train split by its columns of histories
LOOKS_UP_HISTORIES = frozenset(["FEARec"])
TARGET_LIST = "_target_list"  # column of a batch, [B, L]: the item to predict at each position


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
            With pre-split sequences, the history of each row and its target, one row after the other.
        auto_intents: with ``INTENT_FIELD: auto``, the intents that were made; None before `build`.
        user_start: [P] where the user of each interaction starts; with pre-split sequences the row.
    """

    auto_intents: AutoIntents | None = None
    _listed: list[str] | None = None  # columns that pre-split sequences have the history of

    def _benchmark_presets(self) -> None:
        """Nothing: `_change_feat_format` makes the rows of pre-split data too."""

    def _is_ordered_by_time(self) -> bool:
        return self.item_id_list_name not in self.inter_feat

    def _change_feat_format(self) -> None:
        if not self._is_ordered_by_time():
            self._take_in_histories()
            return
        order = self._exact_order(by_user=True)
        if self.benchmark_filename_list is not None:
            part = torch.from_numpy(self._part_of_row()[order])
        # RecBole then sorts all rows by time, stably: by (time, user, order within the user)
        by_time = np.argsort(self._time[order], kind="stable")
        self._forget_time(order)
        self._time_rank = torch.empty(len(order), dtype=torch.int32)
        self._time_rank[torch.from_numpy(by_time)] = torch.arange(len(order), dtype=torch.int32)
        del by_time
        self._take_in(torch.from_numpy(order))
        position = torch.arange(len(order), dtype=torch.int32)
        rows = position[self.user_start != position]  # all but each user's first
        if self.benchmark_filename_list is not None:
            rows = self._by_part(rows, part[rows])
        self._make_rows(rows)

    @property
    def item_id_list_name(self) -> str:
        """Column of the histories of pre-split sequences."""
        return str(self.iid_field) + str(self.config["LIST_SUFFIX"])

    def _make_rows(self, rows: Tensor) -> None:
        self.window_rows = False
        self._aug_presets()
        self._check_field("uid_field")
        self.inter_feat = TargetRows(
            self.flat, self.user_start, self.item_list_length_field, self.max_item_list_len, rows
        )

    def _by_part(self, rows: Tensor, part: Tensor) -> Tensor:
        """Rows with a history, one part of `benchmark_filename` after the other.

        Args:
            rows: [R] positions of their targets.
            part: [R] part of each.
        """
        size = torch.bincount(part, minlength=3).tolist()
        for name, given, left in zip(self.benchmark_filename_list, self.file_size_list, size, strict=True):
            if left < given:
                self.logger.info(f"{self.dataset_name}.{name}: {given - left} of {given} interactions are the first of "
                                 f"their user, part of histories and no target")  # fmt: skip
        self.file_size_list = size
        return rows[torch.argsort(part, stable=True)]

    def _take_in_histories(self) -> None:
        """Pre-split sequences: a row brings its own history, which becomes a stretch of `flat` that ends in the target.

        Of the other columns only the target's value is given.
        """
        if self.benchmark_filename_list is None:
            raise DataError(
                f"{self.dataset_name}.inter has a column {self.item_id_list_name!r}, histories of rows that are split "
                f"already: name the parts with benchmark_filename, or leave the column out (load_col)"
            )
        table, suffix = self.inter_feat, self.config["LIST_SUFFIX"]
        part, user = self._part_of_row(), table[self.uid_field].to_numpy()
        order = np.lexsort((user, part))
        length = np.array([len(history) for history in table[self.item_id_list_name]])[order]
        end = np.cumsum(length + 1)
        is_target = np.zeros(end[-1], dtype=bool)
        is_target[end - 1] = True
        columns = {self.uid_field: np.repeat(user[order], length + 1)}
        self._listed = [name for name in table if name + suffix in table]
        for name in table:
            if name == self.uid_field or (name.removesuffix(suffix) in self._listed and name.endswith(suffix)):
                continue
            values = table[name].to_numpy()[order]
            columns[name] = np.zeros(len(is_target), dtype=values.dtype)
            columns[name][is_target] = values
            if name in self._listed:
                lists = table[name + suffix].to_numpy()[order]
                if wrong := next((row for row, cells in enumerate(lists) if len(cells) != length[row]), None):
                    raise DataError(f"{self.dataset_name}: {name}{suffix} of user {user[order][wrong]} has "
                                    f"{len(lists[wrong])} values, its history {length[wrong]} items")  # fmt: skip
                columns[name][~is_target] = np.concatenate(lists)
        self._forget_time(order, is_flat=False)
        self.inter_feat = pd.DataFrame(columns, copy=False)
        self._take_in(torch.arange(len(is_target)))
        self.user_start = torch.from_numpy(np.repeat(end - length - 1, length + 1).astype(np.int32))
        has_history = torch.from_numpy(length > 0)
        rows = torch.from_numpy((end - 1).astype(np.int32))[has_history]
        self._make_rows(self._by_part(rows, torch.from_numpy(part[order])[has_history]))

    @property
    def has_given_histories(self) -> bool:
        """Whether rows come with their histories, instead of each user's interactions."""
        return self._listed is not None

    def _take_in(self, order: Tensor) -> None:
        """RecBole's change of tables into tensors, a column of the .inter file at a time.

        Each table goes as soon as its tensors are made.
        """
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
        self.window_prob = self.config["window_prob"] or 0.0
        if not 0.0 <= self.window_prob <= 1.0 or (self.window_prob and layout != "all"):
            raise DataError(
                f"window_prob={self.window_prob} with train_layout={layout}: expected a probability, and 0 unless "
                f"train_layout=all, which alone has windows"
            )
        parts = super().build()
        if layout == "all" and self.has_given_histories:
            if self.window_prob:
                raise DataError(f"window_prob={self.window_prob} needs the interactions of users, and these rows come "
                                f"with histories ({self.item_id_list_name})")  # fmt: skip
            self.logger.info("the rows are trained on as they are given, not as windows (train_layout=all)")
        elif layout == "all":
            parts[0] = parts[0].as_windows()
        if self.config["model"] in LOOKS_UP_HISTORIES:
            parts[0].inter_feat[self.item_id_list_field] = parts[0][torch.arange(len(parts[0]))][
                self.item_id_list_field
            ]
        return parts

    def _complete(self, parts: list[Any]) -> None:
        """``INTENT_FIELD: auto``: the intents of the train part, as a column of the items of all parts."""
        if self.config["INTENT_FIELD"] != AUTO:
            return
        self.auto_intents = intents_of(self, parts[0])
        put_into([self, *parts], self.auto_intents)
        self.logger.info(told(self))

    def as_windows(self) -> SequenceDataset:
        """This split with one row per user, cut into windows of L targets counted from the user's last row.

        Raises:
            DataError: the rows of a user are not his first ones without a gap, so that windows would train on others.
        """
        row, user = self.inter_feat[ROW].numpy(), self.inter_feat[self.uid_field].numpy()
        size = np.bincount(user, minlength=self.user_num)
        last = np.zeros(len(size), dtype=np.int64)  # the position of each user's last row
        np.maximum.at(last, user, row)
        present = size > 0
        if not np.array_equal(size[present], (last - self.user_start.numpy()[last])[present]):
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
        row, length = rows[ROW].reshape(-1), rows[self.item_list_length_field].reshape(-1)
        del rows[ROW]
        return self._with_histories(rows, row, length, join=join)

    def of_users(self, users: Tensor) -> Interaction:
        """A row for each user, with its history: the user's first row here.

        A user without one, of so few interactions that nothing was held out, has a row after all interactions, whose
        target is 0.

        Args:
            users: [B] ids.

        Raises:
            DataError: a user without interactions.
        """
        known = self.flat[self.uid_field].numpy()
        last = np.full(self.user_num, -1)
        last[known] = np.arange(len(known))  # of equal ones the last assignment counts
        here = np.full(self.user_num, -1)
        here[self.inter_feat[self.uid_field].numpy()[::-1]] = self.inter_feat[ROW].numpy()[::-1]
        chosen = users.numpy()
        if len(wrong := np.flatnonzero((chosen < 1) | (chosen >= self.user_num))):
            raise DataError(f"user id {chosen[wrong[0]]} is none of 1 ... {self.user_num - 1}")
        if len(wrong := np.flatnonzero(last[chosen] < 0)):
            raise DataError(f"user {self.id2token(self.uid_field, chosen[wrong[0]])!r} has no interactions")
        has_row = torch.from_numpy(here[chosen] >= 0)
        row = torch.where(has_row, torch.from_numpy(here[chosen]), torch.from_numpy(last[chosen] + 1))
        length = (row - self.user_start[row - 1]).clamp(max=self.max_item_list_len)
        at = torch.from_numpy(last[chosen]).where(~has_row, row)
        rows = {name: wide(self.flat[name][at]) for name in self.flat}
        for name, value in rows.items():
            rows[name] = value.where(has_row.reshape(-1, *[1] * (value.dim() - 1)), torch.zeros((), dtype=value.dtype))
        rows[self.uid_field], rows[self.item_list_length_field] = users, length
        return self._with_histories(Interaction(rows), row, length, join=True)

    def _with_histories(self, rows: Interaction, row: Tensor, length: Tensor, *, join: bool) -> Interaction:
        """Put the histories in. row: [B] position of each target; length: [B] of its history."""
        steps = torch.arange(self.max_item_list_len)
        real = steps < length[:, None]  # [B, L]
        at = ((row - length)[:, None] + steps).where(real, 0)
        for field in self._history_fields():
            value = wide(self.flat[field][at])
            mask = real.reshape(real.shape + (1,) * (value.dim() - 2))
            rows[getattr(self, f"{field}_list_field")] = value.where(mask, torch.zeros((), dtype=value.dtype))
        return self._completed(rows, length, join=join)

    def _history_fields(self) -> list[str]:
        """The columns of which a row has the history: all but the user's."""
        given = self._listed if self.has_given_histories else self.flat
        return [field for field in given if field != self.uid_field]

    def all_interactions(self) -> tuple[np.ndarray, np.ndarray]:
        """As for all data sets; of pre-split sequences, which repeat them in histories, each pair once."""
        users, items = super().all_interactions()
        if self.has_given_histories:
            users, items = np.unique(np.stack([users, items]), axis=1)
        return users, items

    def _completed(self, rows: Interaction, length: Tensor, *, join: bool) -> Interaction:  # noqa: ARG002
        """Rows with what stands in other files. length: [B]."""
        return self.join(rows) if join else rows

    # Interactions behind the rows, for whoever counts them ------------------------------------------------------------

    def interactions(self) -> Tensor:
        """Indices into `flat` of the interactions this split's rows stand for, each once.

        These are the rows' targets (all targets of a window) and, as in RecBole, the first item of a user whose
        first row is here. With `final` all there are, those of users of one interaction too.
        """
        if self.config["final"] and not self.has_given_histories:
            return torch.arange(len(self.flat))
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
        if not self.window_rows and not self.config["final"]:
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


def dataset_class(config: Any) -> type[ExactOrderMixin]:
    """The class of data set that a model is trained on here.

    Args:
        config: RecBole's Config, with the model's class.
    """
    if is_ours(config.model_class):
        return NetDataset
    return SequenceDataset if config["MODEL_TYPE"] == ModelType.SEQUENTIAL else TimeOrderedDataset


class NetDataset(SequenceDataset):
    """What nets of ours read: histories of items alone, and beside them the item to predict at each position."""

    def _history_fields(self) -> list[str]:
        return [self.iid_field]

    def _completed(self, rows: Interaction, length: Tensor, *, join: bool) -> Interaction:  # noqa: ARG002
        """Rows with their targets in the column TARGET_LIST; features of users and items are left out."""
        layout = "all" if self.window_rows else "last"
        item = rows[self.iid_field].reshape(-1)
        rows[TARGET_LIST] = next_items(rows[self.item_id_list_field], length, item, layout)
        return rows
