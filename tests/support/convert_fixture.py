"""What tests of conversion share."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from saeclamp_saes.conversion import convert
from saeclamp_saes.conversion.sandbox_main import ConversionRequest, main
from saeclamp_saes.errors import CheckpointError


class Payload:
    """Runs a command when it is unpickled by anything but `weights_only`."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.code,)


def forked(request: ConversionRequest, folder: Path, timeout_seconds: float) -> None:
    """
    Run the sandbox's program in a fork of this process, for tests of what it computes: importing torch anew takes seconds.

    What is given up is given up for the fork alone; `sandbox_launcher.run_sandbox` is what it stands in for.
    """
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(main(request.to_json())))
    process.start()
    process.join(timeout_seconds)
    assert process.exitcode == 0


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
