"""Histories and intents from atomic files.

RecBole's `SequentialDataset` writes one dense row of length L per interaction, sorts by float32 time (which loses the
order of stamps closer than 128 seconds) and copies all of it at each split. Here the interactions are kept once, in
exact order, as flat arrays; a row is a position in them, and its history is gathered when a batch asks for it.
Rows, splits and item ids are RecBole's own; samplers, loaders and `case_study` work on them unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType
from torch import Tensor

from recbole_cafe.config.config import Config
from recbole_cafe.data.columns import check_columns
from recbole_cafe.data.fingerprint import digest_of, fingerprint
from recbole_cafe.data.reader import ColumnarMixin
from recbole_cafe.data.rows import ROW, narrow, select
from recbole_cafe.errors import ConfigError, DataError
from recbole_cafe.files.places import data_folders
from recbole_cafe.files.times import NO_TIMES, are_positions, later_than_before
from recbole_cafe.files.whole import restore
from recbole_cafe.prepare.simulate import ensure_amazon, is_simulated

FILTERS = ("user_inter_num_interval", "item_inter_num_interval", "val_interval", "rm_dup_inter",
           "filter_inter_by_user_or_item")  # fmt: skip


class ExactOrderMixin(ColumnarMixin):
    """Time order as the file has it: float64, stable, ties in file order or shuffled by seed.

    Mixed into any RecBole Dataset class whose model is trained through recbole_cafe.

    Attributes:
        flat: the interactions in (user, time) order, one tensor [P] per column; None before `build`.
        user_start: [P] where the user of each interaction starts.
        digests: of data and split, see :func:`recbole_cafe.data.fingerprint.fingerprint`; None before `build`.
        is_later: [P] bool, whether each interaction has a strictly later stamp than its user's one before; None where
            that cannot be known.
        later_unknown: why it cannot be known; empty if it is.
    """

    flat: Interaction | None = None
    user_start: Tensor
    digests: Mapping[str, str] | None = None
    time_digest = ""  # of the exact times, which no tensor keeps
    is_later: np.ndarray | None = None
    later_unknown = "the order of the interactions was not made from times"

    def build(self) -> list[Dataset]:
        """RecBole's split into train, valid and test; each part knows the digests of data and split."""
        if self.config["final"]:
            parts = self._all_to_train()
        else:
            parts = super().build() if self.benchmark_filename_list is None else self._given_parts()
        self._complete(parts)
        self.digests = fingerprint(self, parts)
        for part in parts:
            part.digests = self.digests
        return parts

    def _complete(self, parts: list[Dataset]) -> None:
        """Make what can only be made of the train part, before data and split are identified.

        Args:
            parts: train, valid and test.
        """

    def _load_data(self, token: str, dataset_path: str) -> None:
        folder = Path(dataset_path)
        restore(folder)  # if a replacement was killed half-way
        if not folder.is_dir():
            self._obtain(token, folder)
        if not isinstance(self.config, Config) and (manifest := is_simulated(folder)):
            self.logger.warning(simulated_notice(token, manifest))  # recbole_cafe.run has said it already
        super()._load_data(token, dataset_path)
        if self._is_ordered_by_time() and self.time_field not in self.inter_feat:
            raise DataError(
                f"{self.dataset_name}.inter has no column {self.time_field!r} loaded, and the order of interactions is "
                f"by time: set TIME_FIELD, or load_col so that inter has it (loaded: {list(self.inter_feat)})"
            )
        check_columns(self.config, self.field2type, self.dataset_name)

    def _obtain(self, token: str, folder: Path) -> None:
        """A folder that is missing: make the simulated `amazon`, leave to RecBole what it can download."""
        is_set = "data_path" in self.config.external_config_dict
        if token == "amazon" and not is_set and not self.config["resume_from"]:
            self.logger.warning(f"{folder} does not exist: making the simulated sample there")
            ensure_amazon(folder)
        elif self._get_download_url("url", allow_none=True) is None:
            present = sorted(p.parent.name for p in folder.parent.glob("*/*.inter"))
            looked = [str(folder)] if is_set else [str(place / token) for place in data_folders()]
            raise DataError(
                f"no data set {token!r}: looked for {', '.join(looked)}; "
                f"data sets in {folder.parent}: {', '.join(present) or 'none'}. Set data_path to the folder that holds "
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

    def _reset_index(self) -> None:
        for name in self.feat_name_list:
            if vars(self)[name].empty:
                keys = [key for key in FILTERS if self.config[key] is not None]
                raise DataError(
                    f"the filters leave nothing of {self.dataset_name}.{name.removesuffix('_feat')}; set are "
                    f"{', '.join(f'{key}={self.config[key]!r}' for key in keys) or 'none'}"
                )
        super()._reset_index()

    def _remap_ID_all(self) -> None:
        if self.benchmark_filename_list is not None:  # which RecBole does not filter
            self._time = self._exact_time()
        super()._remap_ID_all()

    def _part_of_row(self) -> np.ndarray:
        """Which part of `benchmark_filename` each interaction is of: [n], 0 for train, 1 for valid, 2 for test."""
        if len(self.file_size_list) != 3:
            names = self.config["benchmark_filename"]
            raise ConfigError(f"benchmark_filename={names} should name three parts: train, valid, test")
        return np.repeat(np.arange(3), self.file_size_list)

    def _given_parts(self) -> list[Dataset]:
        """The parts of `benchmark_filename`, whose rows `_change_feat_format` has left one part after the other."""
        self._change_feat_format()
        self._drop_unused_col()
        ends = np.cumsum([0, *self.file_size_list])
        return [self.copy(select(self.inter_feat, np.arange(*ends[i : i + 2]))) for i in range(3)]

    def _all_to_train(self) -> list[Dataset]:
        """Every row in the train part, none in the other two: `final`."""
        self._change_feat_format()
        self._drop_unused_col()
        rows = np.arange(len(self.inter_feat))
        return [self.copy(select(self.inter_feat, index)) for index in (rows, rows[:0], rows[:0])]

    def _is_ordered_by_time(self) -> bool:
        """Whether the order of interactions is by their times, as it is unless they come with their histories."""
        return True

    def _exact_time(self) -> np.ndarray | None:
        """The time column in float64 before any normalisation; rows are in file order, none lacks it."""
        if self.time_field not in self.inter_feat:
            return None
        return self.inter_feat[self.time_field].to_numpy(dtype=np.float64)

    def _exact_order(self, by_user: bool) -> np.ndarray:
        """Permutation of the file's rows into (user,) time order.

        Parts that are given stay one after the other, unless all of them are trained on.
        """
        n = len(self.inter_feat)
        keys = [self._time]  # the last key is the first to sort by; ties stay in the order of the file
        if by_user:
            if self.benchmark_filename_list is not None and not self.config["final"]:
                keys.append(self._part_of_row())  # or what is for the test could come before what is to train on
            keys.append(self.inter_feat[self.uid_field].to_numpy())
        if self.config["tie_order"] == "random":
            tie = np.arange(n)
            seed = self.config["seed"] if self.config["tie_seed"] is None else self.config["tie_seed"]
            np.random.default_rng(seed).shuffle(tie)
            keys.insert(0, tie)
        elif _is_sorted(keys):
            return np.arange(n)
        return np.lexsort(keys)

    def _forget_time(self, order: np.ndarray, *, is_flat: bool = True) -> None:
        """Keep of the exact times their digest and which are later than the ones before.

        Args:
            order: into (user, time) order.
            is_flat: that order is the one of `flat`, in which each interaction follows the user's one before.
        """
        time = None if self._time is None else self._time[order]
        self._time = None
        self.time_digest = "" if time is None else digest_of(time)
        if time is None or not is_flat:
            self.later_unknown = "the rows come with their histories, without the time of each item"
            return
        user = self.inter_feat[self.uid_field].to_numpy()[order]
        if are_positions(user, time):
            self.later_unknown = f"{NO_TIMES} ({self.time_field})"
        else:
            self.is_later, self.later_unknown = later_than_before(user, time), ""

    def later_targets(self) -> np.ndarray | None:
        """[R] bool, whether the target of each row is strictly later than the item before; None if not known."""
        return None if self.is_later is None else self.is_later[self.inter_feat[ROW].numpy()]

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
        if self.benchmark_filename_list is not None:
            by_time = by_time[np.argsort(self._part_of_row()[by_time], kind="stable")]
        self._forget_time(by_user)
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


def simulated_notice(name: str, manifest: dict) -> str:
    """What every run on simulated data says first.

    Args:
        name: of the data set.
        manifest: from :func:`recbole_cafe.prepare.simulate.is_simulated`.
    """
    return (
        f"dataset {name!r} is SIMULATED (generator {manifest.get('generator')}, seed "
        f"{manifest.get('parameters', {}).get('seed')}), not real data: no result on it says anything about Amazon. "
        f"To use real data, put {name}.inter and {name}.item in a folder <data_path>/{name}; the README.md in its "
        f"folder says how."
    )


def statistics(dataset: Dataset, config: Any) -> dict[str, Any]:
    """Counts of a dataset, for the log and the result file (call before the split; if it is ours, also after)."""
    n_users, n_items = dataset.user_num - 1, dataset.item_num - 1
    n = (
        len(dataset.flat)
        if isinstance(dataset, ExactOrderMixin) and dataset.flat is not None
        else len(dataset.inter_feat)
    )
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
