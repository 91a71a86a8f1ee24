"""A file of labels whose rows are read from the disk when they are asked for."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow.parquet as pq
from pyarrow.compute import list_value_length

from saeclamp_saes.labelling.schema import with_later_columns
from saeclamp_saes.labelling.table import Feature, LabelsInfo, check_order, read_info, readable, to_feature


class LabelFile:
    """An open file of labels. It stays the same if another file takes its place on the disk."""

    def __init__(self, path: Path) -> None:
        """Open a file. Raises LabelError where there is none, or it does not hold labels, one row a feature in order."""
        self.path = path
        with readable(path):
            self._file = pq.ParquetFile(path)
            self.info: LabelsInfo = read_info(path, self._file.schema_arrow)
            columns = self._file.read(["index", "max_act"])
        check_order(path, columns["index"].to_pylist())
        self.max_acts: list[float | None] = columns["max_act"].to_pylist()
        """`max_act` of each feature, by index."""
        groups = self._file.metadata
        sizes = (groups.row_group(number).num_rows for number in range(groups.num_row_groups))
        self._firsts = [0, *accumulate(sizes)]
        self._lock = Lock()  # a file has one position

    def __len__(self) -> int:
        return len(self.max_acts)

    def column(self, name: str) -> list[Any]:
        """Read one column of plain values, by index. Raises LabelError."""
        with readable(self.path), self._lock:
            values: list[Any] = self._file.read([name])[name].to_pylist()
        return values

    def top_tokens(self) -> list[list[str]]:
        """Read the tokens whose logits each feature raises most, by index. Raises LabelError."""
        rows: list[list[str]] = []
        with readable(self.path), self._lock:
            for batch in self._file.iter_batches(columns=["top_logits"]):
                column = batch.column(0)
                tokens = column.flatten().field("token").to_pylist()  # no dictionary for each of them
                ends = accumulate(length.as_py() or 0 for length in list_value_length(column))
                start = 0
                for end in ends:
                    rows.append(tokens[start:end])
                    start = end
        return rows

    def __getitem__(self, index: int) -> Feature:
        """Read a feature's row. Raises IndexError, and LabelError where the file is damaged there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._firsts, index) - 1
        with readable(self.path), self._lock:
            group = with_later_columns(self._file.read_row_group(number))
            (row,) = group.slice(index - self._firsts[number], 1).to_pylist()
        return to_feature(row)
