"""Arrays on disk that grow row by row, so that a long step can be stopped and resumed with no row lost and none twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp_saes.errors import LabelError
from saeclamp_saes.io.work_folder import write_json

STATE = "state.json"


class StoredColumn(NamedTuple):
    """Type and width of a column, which is a file of rows."""

    dtype: str
    """Name of numpy's dtype, with its byte order."""
    width: int | None = None
    """Numbers in a row; None: rows are single numbers, and the array has one dimension."""


class ColumnStore:
    """
    Columns of one step, in a folder, with a state that holds the step's progress.

    Appended rows count once they are committed; opening a folder cuts off those that were not.
    """

    def __init__(self, folder: Path, columns: Mapping[str, StoredColumn]) -> None:
        """Begin, or resume. Raises LabelError where committed rows are missing."""
        folder.mkdir(exist_ok=True)
        self._folder, self._columns = folder, columns
        noted: dict[str, Any] = {"bytes": dict.fromkeys(columns, 0), "state": {}}
        if self._noted.exists():
            noted = _read(self._noted, columns)
        for name, num_bytes in noted["bytes"].items():
            check_size(self._path(name), num_bytes)
        self._bytes: dict[str, int] = noted["bytes"]
        self.state: dict[str, Any] = noted["state"]
        """The state that was committed last; empty at first."""
        for name in columns:
            with self._path(name).open("ab") as file:
                file.truncate(self._bytes[name])

    def append(self, **rows: NDArray[Any]) -> None:
        """Append rows to some columns."""
        for name, values in rows.items():
            data = np.ascontiguousarray(values, dtype=self._columns[name].dtype).tobytes()
            with self._path(name).open("ab") as file:
                file.write(data)
            self._bytes[name] += len(data)

    def commit(self, **state: Any) -> None:
        """Note that all rows so far count, with a JSON-able state."""
        write_json(self._noted, {"bytes": self._bytes, "state": state})
        self.state = state

    @property
    def num_done(self) -> int:
        """Number of rows that are done, as the state's `done` says; 0 without it. Raises LabelError."""
        done = self.state.get("done", 0)
        if type(done) is not int:
            raise damaged(self._noted)
        return done

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a column's rows, memory-mapped: (num_rows,) or (num_rows, width)."""
        dtype, width = self._columns[name]
        shape = (-1,) if width is None else (-1, width)
        if not self._bytes[name]:  # which cannot be mapped
            return np.empty(0, dtype).reshape(0, *shape[1:])
        return np.memmap(self._path(name), dtype, mode="r").reshape(shape)

    @property
    def _noted(self) -> Path:
        return self._folder / STATE

    def _path(self, name: str) -> Path:
        return self._folder / name


def _read(path: Path, columns: Mapping[str, StoredColumn]) -> dict[str, Any]:
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        noted = None
    match noted:
        case {"bytes": dict() as sizes, "state": dict()} if sizes.keys() == columns.keys() and all(
            type(size) is int and size >= 0 for size in sizes.values()
        ):
            return dict(noted)
    raise damaged(path)


def check_size(path: Path, num_bytes: int) -> None:
    """Check that a file has at least the bytes that were written to it. Raises LabelError."""
    size = path.stat().st_size if path.is_file() else 0
    if size < num_bytes:
        raise LabelError(
            f"{path} was cut short: it has {size:,} bytes, and {num_bytes:,} were written. To begin anew, delete the folder "
            f"{path.parent.parent}."
        )


def damaged(path: Path) -> LabelError:
    """Return the error for a file of a step whose content is not as it was written."""
    return LabelError(f"{path} is damaged. To begin anew, delete the folder {path.parent.parent}.")
