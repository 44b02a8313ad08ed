"""Histories gathered on demand: one row per target, and for training one row per user."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_cafe.data.batch import next_items
from recbole_cafe.data.rows import ROW, TargetRows, narrow, select, wide
from recbole_cafe.data.time_order import ExactOrderMixin
from recbole_cafe.errors import DataError

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
        user_start: [P] where the user of each interaction starts.
    """

    def _change_feat_format(self) -> None:
        if self.config["benchmark_filename"] is not None:
            super()._change_feat_format()
            return
        order = self._exact_order(by_user=True)
        # RecBole then sorts all rows by time, stably: by (time, user, order within the user)
        by_time = np.argsort(self._time[order], kind="stable")
        self._forget_time(order)
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
        row = rows[ROW].reshape(-1)
        length = rows[self.item_list_length_field].reshape(-1)
        steps = torch.arange(self.max_item_list_len)
        real = steps < length[:, None]  # [B, L]
        at = ((row - length)[:, None] + steps).where(real, 0)
        for field in self._history_fields():
            value = wide(self.flat[field][at])
            mask = real.reshape(real.shape + (1,) * (value.dim() - 2))
            rows[getattr(self, f"{field}_list_field")] = value.where(mask, torch.zeros((), dtype=value.dtype))
        del rows[ROW]
        return self._completed(rows, length, join=join)

    def _history_fields(self) -> list[str]:
        """The columns of which a row has the history: all but the user's."""
        return [field for field in self.flat if field != self.uid_field]

    def _completed(self, rows: Interaction, length: Tensor, *, join: bool) -> Interaction:  # noqa: ARG002
        """Rows with what stands in other files. length: [B]."""
        return self.join(rows) if join else rows

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
