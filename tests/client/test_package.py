"""What importing the package costs, and what it exports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import saeclamp


def test_importing_the_client_loads_no_heavy_package() -> None:
    root = str(Path(saeclamp.__file__).parent.parent)
    code = (
        "import json, saeclamp, sys;"
        "print(json.dumps([m for m in ('httpx', 'torch', 'vllm', 'transformers', 'numpy') if m in sys.modules]))"
    )
    env = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["httpx"]


def test_everything_promised_is_exported() -> None:
    assert [name for name in saeclamp.__all__ if not hasattr(saeclamp, name)] == []
    assert saeclamp.__version__[0].isdigit()


def test_every_error_is_a_saeclamp_error() -> None:
    errors = [value for name in saeclamp.__all__ if name.endswith("Error") for value in [getattr(saeclamp, name)]]
    assert len(errors) == 18
    assert all(issubclass(error, saeclamp.SaeclampError) for error in errors)
    assert issubclass(saeclamp.APITimeoutError, saeclamp.APIConnectionError)
