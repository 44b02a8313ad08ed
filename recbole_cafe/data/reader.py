"""The reading of atomic files in RecBole's place: every line and value checked, a column at a time, at every size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.utils import FeatureSource, FeatureType

from recbole_cafe.errors import DataError
from recbole_cafe.files.atomic import ID_ROLE, TIME_ROLE, AtomicFileError, Role, TextFormat, read_header
from recbole_cafe.files.columns import Lists, Vocabulary, read_columns

OURS = (FeatureSource.INTERACTION, FeatureSource.USER, FeatureSource.ITEM)  # and those of additional_feat_suffix


def text_format(config: Any) -> TextFormat:
    """How a configuration says that atomic files are written: keys encoding, field_separator, seq_separator.

    Raises:
        ConfigError: a key that cannot be right.
    """
    return TextFormat(config["encoding"] or "utf-8", config["field_separator"], config["seq_separator"])


class ColumnarMixin:
    """Reads atomic files by :mod:`recbole_cafe.files.columns`. Mixed into a RecBole Dataset class.

    Between reading and `_remap`, a token column holds the places of its tokens in a vocabulary (NaN where a cell is
    missing), and a token_seq column arrays of them; RecBole's filters treat the places as they would the tokens. The
    columns that share their ids (`alias_of_item_id`, `alias_of_user_id`) share a vocabulary.
    """

    def _get_field_from_config(self) -> None:
        super()._get_field_from_config()
        self._text = text_format(self.config)
        self._vocabularies: dict[str, Vocabulary] = {}  # space of ids, by the column it is named after
        self._space: dict[str, str] = {}  # column -> its space of ids, where that has another name
        for key, field in (("alias_of_user_id", self.uid_field), ("alias_of_item_id", self.iid_field)):
            self._space |= dict.fromkeys(self.config[key] or (), field)
        self._first_of: dict[str, tuple[Path, Any]] = {}  # column -> the file and source that had it first
        self._inter_kinds: dict[str, str] = {}  # columns of the interactions -> type

    # Files ------------------------------------------------------------------------------------------------------------

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        names = self.benchmark_filename_list
        parts = [f"{token}.inter"] if names is None else [f"{token}.{name}.inter" for name in names]
        for path in (Path(dataset_path) / part for part in parts):
            if not path.is_file():
                present = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else []
                key = "" if names is None else f" (benchmark_filename={names})"
                raise DataError(f"{path} does not exist{key}; in the folder: {', '.join(present) or 'nothing'}")
        super()._load_inter_feat(token, dataset_path)

    def _load_additional_feat(self, token: str, dataset_path: str) -> None:
        for suffix in self.config["additional_feat_suffix"] or ():
            if not (path := Path(dataset_path, f"{token}.{suffix}")).is_file():
                raise DataError(f"{path} does not exist (key additional_feat_suffix)")
        super()._load_additional_feat(token, dataset_path)

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        if source not in OURS and source not in (self.config["additional_feat_suffix"] or ()):
            return super()._load_feat(filepath, source)  # a graph or links, of RecBole's knowledge-based classes
        path = Path(filepath)
        kinds = self._columns(path, source)
        if not kinds:
            return None
        self._check_columns(path, source, kinds)
        for name, kind in kinds.items():
            if "float" in kind:
                self.field2bucketnum[name] = 2
            self.set_field_property(name, FeatureType(kind), source, 1)
        read = read_columns(
            path, list(kinds),
            {name: self._vocabulary(name) for name, kind in kinds.items() if kind.startswith("token")},
            text=self._text, roles=self._roles(source),
        )  # fmt: skip
        for note in read.notes():
            self.logger.info(note)
        key = {FeatureSource.USER: self.uid_field, FeatureSource.ITEM: self.iid_field}.get(source)
        if key and (dropped := read.drop_repeats(key)):
            self.logger.info(f"{path.name}: {dropped} rows dropped that repeat the row of their {key}")
        return pd.DataFrame({name: self._cells(name, read.data.pop(name)) for name in kinds}, copy=False)

    def _columns(self, path: Path, source: Any) -> dict[str, str]:
        """The columns to load of a file, name -> type, in the order of the file."""
        load_col, unload_col = self._get_load_and_unload_col(source)
        if load_col == set():
            return {}
        kinds = {
            name: kind
            for name, kind in read_header(path, self._text).items()
            if (load_col is None or name in load_col) and name not in (unload_col or ())
        }
        if not kinds:
            self.logger.warning(f"{path.name}: none of its columns is loaded")
        return kinds

    def _check_columns(self, path: Path, source: Any, kinds: dict[str, str]) -> None:
        """The ids are there, the parts of pre-split interactions agree, and no name means two columns."""
        ids = {"USER_ID_FIELD": self.uid_field, "ITEM_ID_FIELD": self.iid_field}
        if source in (FeatureSource.USER, FeatureSource.ITEM):
            ids.pop("ITEM_ID_FIELD" if source == FeatureSource.USER else "USER_ID_FIELD")
        for key, field in ids.items() if source in OURS else ():
            if field and field not in kinds:
                there = ", ".join(read_header(path, self._text))
                raise AtomicFileError(
                    f"{path}: no column {field!r} (key {key}) is loaded; found {there}, loaded {', '.join(kinds)} "
                    "(keys load_col, unload_col)"
                )
        if source == FeatureSource.INTERACTION:
            if self._inter_kinds and self._inter_kinds != kinds:
                raise AtomicFileError(
                    f"{path}: found the columns {_shown(kinds)}, expected {_shown(self._inter_kinds)} as in the first "
                    "part of benchmark_filename"
                )
            self._inter_kinds = kinds
        for name in kinds:
            other, of = self._first_of.setdefault(name, (path, source))
            if of != source and {of, source} != {FeatureSource.INTERACTION, self._source_of_ids(name)}:
                raise AtomicFileError(
                    f"{path}: column {name!r} is in {other.name} too, and RecBole knows one column of a name; leave "
                    "one of them out (keys load_col, unload_col) or rename it"
                )

    def _source_of_ids(self, name: str) -> FeatureSource | None:
        return {self.uid_field: FeatureSource.USER, self.iid_field: FeatureSource.ITEM}.get(name)

    def _roles(self, source: Any) -> dict[str, Role]:
        """What is asked of the columns of a file."""
        roles = dict.fromkeys(self._space, Role(("token", "token_seq")))
        if self.iid_field:  # the histories of pre-split sequences
            roles[self.iid_field + self.config["LIST_SUFFIX"]] = Role(("token_seq",))
        if source in (FeatureSource.INTERACTION, FeatureSource.USER):
            roles[self.uid_field] = ID_ROLE
        if source in (FeatureSource.INTERACTION, FeatureSource.ITEM):
            roles[self.iid_field] = ID_ROLE
        if source == FeatureSource.INTERACTION:
            roles[self.time_field] = TIME_ROLE
        return roles

    def _vocabulary(self, name: str) -> Vocabulary:
        return self._vocabularies.setdefault(self._space.get(name, name), Vocabulary())

    def _cells(self, name: str, column: np.ndarray | Lists) -> Any:
        """A column as RecBole's filters expect it."""
        if isinstance(column, Lists):
            longest, limit = int(column.lengths.max()), (self.config["seq_len"] or {}).get(name)
            self.field2seqlen[name] = min(limit, longest) if limit else longest
            return [values[:limit] for values in column.rows()]
        if column.dtype == np.int32 and column.min() < 0:
            return np.where(column < 0, np.nan, column)
        return column

    # RecBole's filters, by places and where they need not look at every interaction -----------------------------------

    def _filter_by_field_value(self) -> None:
        """RecBole's `val_interval`, in which values of token columns are listed; a token may be written as a number."""
        for field, kept in (self.config["val_interval"] or {}).items():
            for feat in self.field2feats(field):
                if self.field2type[field] == FeatureType.FLOAT:
                    keep = self._within_intervals(feat[field].to_numpy(), self._parse_intervals_str(kept))
                else:
                    keep = feat[field].isin(self._vocabulary(field).places(map(str, kept))).to_numpy()
                feat.drop(feat.index[~keep], inplace=True)

    def _filter_inter_by_user_or_item(self) -> None:
        if self.config["filter_inter_by_user_or_item"] is not True or not self._all_are_listed():
            super()._filter_inter_by_user_or_item()

    def _all_are_listed(self) -> bool:
        """Whether each user and item of the interactions has a row in its file, if there is one."""
        for field, feat in ((self.uid_field, self.user_feat), (self.iid_field, self.item_feat)):
            if feat is None:
                continue
            listed = np.zeros(len(self._vocabulary(field)), dtype=bool)
            listed[feat[field].to_numpy()] = True
            if not listed[self.inter_feat[field].to_numpy()].all():
                return False
        return True

    def _filter_by_inter_num(self) -> None:
        if self._some_count_is_outside():
            super()._filter_by_inter_num()

    def _some_count_is_outside(self) -> bool:
        """Whether RecBole's filter by numbers of interactions would drop anything."""
        sides = ((self.uid_field, self.user_feat, "user"), (self.iid_field, self.item_feat, "item"))
        for field, feat, side in sides:
            intervals = self._parse_intervals_str(self.config[f"{side}_inter_num_interval"])
            if intervals is None or field is None:
                continue
            counts = np.bincount(self.inter_feat[field].to_numpy(), minlength=len(self._vocabulary(field)))
            if not np.all(self._within_intervals(counts[counts > 0], intervals)):
                return True
            if feat is not None and intervals and (counts[feat[field].to_numpy()] < intervals[0][1]).any():
                return True
        return False

    # Ids --------------------------------------------------------------------------------------------------------------

    def _remap(self, remap_list: list[tuple[pd.DataFrame, str, FeatureType]]) -> None:
        """RecBole's ids: in order of first appearance in what the filters have left."""
        space = self._space.get(remap_list[0][1], remap_list[0][1]) if remap_list else None
        if space not in self._vocabularies:
            super()._remap(remap_list)
            return
        codes, lengths = [], []
        for feat, field, kind in remap_list:
            column = feat[field].to_numpy()
            is_list = kind == FeatureType.TOKEN_SEQ
            lengths.append(np.array([len(cell) for cell in column]) if is_list else None)
            codes.append(np.concatenate(column) if is_list else column)
        places, present = pd.factorize(np.concatenate(codes))
        ids = np.split((places + 1).astype(np.int32), np.cumsum([len(part) for part in codes])[:-1])
        id_token = self._vocabularies.pop(space).id_token(present.astype(np.int64))
        token_id = TokenIds(id_token)
        for (feat, field, _), part, of_row in zip(remap_list, ids, lengths, strict=True):
            self.field2id_token[field], self.field2token_id[field] = id_token, token_id
            feat[field] = part if of_row is None else Lists(part.astype(np.int64), of_row).rows()

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Any:
        """RecBole's, which takes only int64 for ids."""
        types = {name: np.int64 for name in data if data[name].dtype == np.int32}
        return super()._dataframe_to_interaction(data.astype(types) if types else data)


class TokenIds(Mapping):
    """RecBole's `field2token_id`, the inverse of `field2id_token`; built when first asked, which most runs never do."""

    def __init__(self, id_token: np.ndarray) -> None:
        self._id_token = id_token
        self._ids: dict[str, int] | None = None

    def _built(self) -> dict[str, int]:
        if self._ids is None:
            self._ids = {token: i for i, token in enumerate(self._id_token.tolist())}
        return self._ids

    def __getitem__(self, token: str) -> int:
        return self._built()[token]

    def __contains__(self, token: object) -> bool:
        return token in self._built()

    def __iter__(self) -> Iterator[str]:
        return iter(self._built())

    def __len__(self) -> int:
        return len(self._built())

    def __repr__(self) -> str:
        return repr(self._built())


def _shown(kinds: dict[str, str]) -> str:
    return ", ".join(f"{name}:{kind}" for name, kind in kinds.items())
