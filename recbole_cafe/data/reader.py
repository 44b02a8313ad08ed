"""Which reader a data set is read by, and the columnar one in RecBole's place."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from recbole.utils import FeatureSource, FeatureType

from recbole_cafe.files.atomic import read_header

if TYPE_CHECKING:
    from recbole_cafe.data.columnar import Vocabulary

AUTO_BYTES = 64 << 20  # an .inter file above this size is read by columns; below, RecBole's reader takes seconds


class ColumnarMixin:
    """Reads large atomic files by :mod:`recbole_cafe.data.columnar`. Mixed into a RecBole Dataset class.

    Between reading and `_remap`, a token column holds the places of its tokens in a vocabulary (NaN where a cell is
    missing), which RecBole's filters treat as they would the tokens.
    """

    _reader_is_chosen = False
    _vocabularies: dict[str, Vocabulary] | None = None  # None: RecBole's reader reads

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        path = Path(filepath)
        if not self._reader_is_chosen:  # the first file is the .inter file
            self._vocabularies = {} if self._reads_by_columns(path) else None
            self._reader_is_chosen = True
        columns = self._columns(path, source) if self._vocabularies is not None else {}
        if not columns:
            return super()._load_feat(filepath, source)
        from recbole_cafe.data import columnar  # here: it needs pyarrow, which takes memory

        for name, kind in columns.items():
            if kind == "token":
                self._vocabularies.setdefault(name, columnar.Vocabulary())
        if seqs := [name for name, kind in columns.items() if kind.endswith("_seq")]:
            self.logger.info(f"{path.name} is read by RecBole's reader: {', '.join(seqs)} holds a list in each row")
            feat = super()._load_feat(filepath, source)
            for name in set(columns) & set(self._vocabularies):
                feat[name] = _column(self._vocabularies[name].of_texts(feat[name].to_numpy(dtype=object)))
            return feat
        for name, kind in columns.items():
            self.set_field_property(name, FeatureType(kind), source, 1)
            if kind == "float":
                self.field2bucketnum[name] = 2
        data = columnar.read_columns(path, list(columns), self._vocabularies)
        return pd.DataFrame({name: _column(data.pop(name)) for name in columns}, copy=False)

    def _columns(self, path: Path, source: Any) -> dict[str, str]:
        """The columns to load of a file, name -> type, in the order of the file."""
        load_col, unload_col = self._get_load_and_unload_col(source)
        header = read_header(path)
        return {
            name: kind
            for name, kind in header.items()
            if (load_col is None or name in load_col) and name not in (unload_col or ())
        }

    def _reads_by_columns(self, inter: Path) -> bool:
        """Whether the data set is read by columns, by the key `reader` and by what the columnar reader can do."""
        reader = self.config["reader"] or "auto"
        if reader == "recbole" or (reader == "auto" and inter.stat().st_size <= AUTO_BYTES):
            return False
        reason = self._reason_against_columns(inter)
        if reason:
            self.logger.info(f"{inter.name} is read by RecBole's reader, not by columns: {reason}")
        return not reason

    def _reason_against_columns(self, inter: Path) -> str | None:
        for key in ("benchmark_filename", "additional_feat_suffix", "alias_of_user_id", "alias_of_item_id"):
            if self.config[key]:
                return f"{key} is set"
        if self.config["field_separator"] != "\t":
            return f"field_separator is {self.config['field_separator']!r}"
        if codecs.lookup(self.config["encoding"] or "utf-8").name != "utf-8":
            return f"encoding is {self.config['encoding']}"
        if not (self.uid_field and self.iid_field):
            return "no USER_ID_FIELD and ITEM_ID_FIELD"
        kinds: dict[str, str] = {}
        for source in (FeatureSource.INTERACTION, FeatureSource.USER, FeatureSource.ITEM):
            path = inter.with_suffix(f".{source.value}")
            columns = self._columns(path, source) if path.is_file() else {}
            if columns and len(read_header(path)) == 1:
                return f"{path.name} has one column only"  # where a blank line cannot be told from an empty cell
            for name, kind in columns.items():
                is_id = name == {"user": self.uid_field, "item": self.iid_field}.get(source.value)
                if name in kinds and not is_id:
                    return f"column {name} is in two files"
                if source == FeatureSource.INTERACTION and kind.endswith("_seq"):
                    return f"column {name} holds a list in each row"
                kinds[name] = kind
        if wrong := [name for name in (self.uid_field, self.iid_field) if kinds.get(name) != "token"]:
            return f"{wrong[0]} is no token column"
        for name in self.config["val_interval"] or {}:
            if kinds.get(name) != "float":
                return f"val_interval has {name}, which is no float column"
        return None

    # RecBole's filters, where they need not look at every interaction ------------------------------------------------

    def _filter_inter_by_user_or_item(self) -> None:
        filters = self.config["filter_inter_by_user_or_item"] is True
        if filters and self._vocabularies is not None and self._all_are_listed():
            return
        super()._filter_inter_by_user_or_item()

    def _all_are_listed(self) -> bool:
        """Whether each user and item of the interactions has a row in its file, if there is one."""
        for field, feat in ((self.uid_field, self.user_feat), (self.iid_field, self.item_feat)):
            if feat is None:
                continue
            listed = np.zeros(len(self._vocabularies[field]), dtype=bool)
            listed[_codes(feat[field])] = True
            if not listed[_codes(self.inter_feat[field])].all():
                return False
        return True

    def _filter_by_inter_num(self) -> None:
        if self._vocabularies is None or self._some_count_is_outside():
            super()._filter_by_inter_num()

    def _some_count_is_outside(self) -> bool:
        """Whether RecBole's filter by numbers of interactions would drop anything."""
        sides = ((self.uid_field, self.user_feat, "user"), (self.iid_field, self.item_feat, "item"))
        for field, feat, side in sides:
            intervals = self._parse_intervals_str(self.config[f"{side}_inter_num_interval"])
            if intervals is None:
                continue
            counts = np.bincount(_codes(self.inter_feat[field]), minlength=len(self._vocabularies[field]))
            if not np.all(self._within_intervals(counts[counts > 0], intervals)):
                return True
            if feat is not None and intervals and (counts[_codes(feat[field])] < intervals[0][1]).any():
                return True
        return False

    # Ids --------------------------------------------------------------------------------------------------------------

    def _remap(self, remap_list: list[tuple[pd.DataFrame, str, FeatureType]]) -> None:
        """RecBole's ids: in order of first appearance in what the filters have left."""
        if self._vocabularies is None or not remap_list or remap_list[0][1] not in self._vocabularies:
            super()._remap(remap_list)
            return
        from recbole_cafe.data import columnar

        field = remap_list[0][1]
        codes = [feat[field].to_numpy() for feat, _, _ in remap_list]
        places, present = pd.factorize(np.concatenate(codes))
        ids = np.split((places + 1).astype(np.int32), np.cumsum([len(part) for part in codes])[:-1])
        id_token = self._vocabularies.pop(field).id_token(present.astype(np.int64))
        self.field2id_token[field], self.field2token_id[field] = id_token, columnar.TokenIds(id_token)
        for (feat, _, _), part in zip(remap_list, ids, strict=True):
            feat[field] = part

    def _token(self, field: str, value: Any) -> str:
        """The token of a cell of `inter_feat` before `_remap`."""
        if self._vocabularies is None or value != value:
            return value
        return str(self._vocabularies[field].id_token(np.array([int(value)]))[1])

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Any:
        """RecBole's, which takes only int64 for ids."""
        types = {name: np.int64 for name in data if data[name].dtype == np.int32}
        return super()._dataframe_to_interaction(data.astype(types) if types else data)


def _column(values: np.ndarray) -> np.ndarray:
    """Codes as RecBole's filters expect them: NaN where there is no token. Other columns as they are."""
    if values.dtype == np.int32 and len(values) and values.min() < 0:
        return np.where(values < 0, np.nan, values)
    return values


def _codes(column: pd.Series) -> np.ndarray:
    """Ids that are not missing, as integers again."""
    values = column.to_numpy()
    return values if values.dtype == np.int32 else values.astype(np.int32)
