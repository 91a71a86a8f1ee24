"""Arrays on disk that grow row by row, so that a long step is stopped and goes on with nothing lost and nothing twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saeclamp_saes.training.folder import write_json


class Column(NamedTuple):
    """A file of rows."""

    dtype: str
    """numpy's, with its byte order"""
    width: int | None = None
    """Numbers of a row; None: rows are single numbers, and the array has one dimension"""


class Columns:
    """
    Columns of one step, in a folder, with a state that says how far the step has come.

    What was appended counts once it is committed; opening a folder cuts off what was not.
    """

    def __init__(self, folder: Path, columns: Mapping[str, Column]) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._columns = folder, columns
        noted: dict[str, Any] = {"bytes": dict.fromkeys(columns, 0), "state": {}}
        if self._noted.exists():
            noted = json.loads(self._noted.read_text(encoding="utf-8"))
        self._bytes: dict[str, int] = noted["bytes"]
        self.state: dict[str, Any] = noted["state"]
        """As it was committed last; empty at first"""
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
        """Note that everything so far is whole, with a JSON-able state."""
        write_json(self._noted, {"bytes": self._bytes, "state": state})
        self.state = state

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a column's rows, read from disk as they are looked at: (num_rows,) or (num_rows, width)."""
        dtype, width = self._columns[name]
        shape = (-1,) if width is None else (-1, width)
        if not self._bytes[name]:  # which cannot be mapped
            return np.empty(0, dtype).reshape(0, *shape[1:])
        return np.memmap(self._path(name), dtype, mode="r").reshape(shape)

    @property
    def _noted(self) -> Path:
        return self._folder / "state.json"

    def _path(self, name: str) -> Path:
        return self._folder / name
