"""Goldens on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.goldens.frozen_formats import KEPT
from tests.goldens.surface import SURFACE

FOLDER = Path(__file__).with_name("recorded")
GOLDENS: dict[str, Callable[[], Any]] = {**SURFACE, **KEPT}


def path_of(name: str) -> Path:
    """Return where a golden is recorded."""
    return FOLDER / f"{name}.json"


def text_of(name: str) -> str:
    """Write down what is so now."""
    return json.dumps(GOLDENS[name](), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
