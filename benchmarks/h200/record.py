"""A part's record: its clock and its results, which are on disk as soon as they are there."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class Record:
    """The record of one part."""

    def __init__(self, file: Path, seconds: float) -> None:
        """`seconds` is the part's share of the lease."""
        self._file, self._end = file, time.monotonic() + seconds
        self.results: dict[str, Any] = {}

    @property
    def left(self) -> float:
        """Seconds that are left of the part's share."""
        return self._end - time.monotonic()

    def put(self, name: str, value: Any) -> None:
        """Keep a result, JSON-able, and say it."""
        self.results[name] = value
        self._keep(name, value)

    def add(self, name: str, value: Any) -> None:
        """Keep one more of several results."""
        self.results.setdefault(name, []).append(value)
        self._keep(name, value)

    def _keep(self, name: str, value: Any) -> None:
        write_json(self._file, self.results)
        print(f"  {name}: {json.dumps(value)}", file=sys.stderr, flush=True)


def write_json(file: Path, value: Any) -> None:
    """Write a file that is whole at any moment."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1))
    os.replace(part, file)
