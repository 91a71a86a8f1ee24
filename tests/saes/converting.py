"""What tests of conversion share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from saeclamp_saes.conversion import convert
from saeclamp_saes.errors import CheckpointError


class Payload:
    """Runs a command when it is unpickled by anything but `weights_only`."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.code,)


def refusal(path: Path, destination: Path, **how: Any) -> str:
    """Return the sentence with which converting fails, having left nothing behind."""
    before = set(destination.parent.iterdir())
    with pytest.raises(CheckpointError) as raised:
        convert(path, destination, **how)
    assert set(destination.parent.iterdir()) == before
    sentence = str(raised.value)
    assert sentence.isprintable()
    assert "Traceback" not in sentence
    return sentence
