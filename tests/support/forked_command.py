"""
Commands that are run to see what they say, in forks of a process that has imported what all of them need.

Imports are most of what a command takes. What is about the process itself, such as its terminal, its signals or its imports,
runs `python -m saeclamp_server`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEAVY = (
    *("numpy", "pyarrow.parquet", "rich.console", "rich.table", "safetensors.torch", "yaml"),
    *("torch", "torch.fx.experimental.symbolic_shapes"),  # imported by tensors without numbers
    *("saeclamp", "saeclamp_saes.cli.library", "saeclamp_saes.library.add", "saeclamp_saes.loaders.detect"),
    *("saeclamp_server.__main__", "saeclamp_server.cli.args"),
)
OF_THE_ENVIRONMENT = {"huggingface_hub", "transformers"}
"""Packages that read the environment when they are imported, so each fork imports them itself."""
LIMIT_S = 300

_lock = threading.Lock()
_process: subprocess.Popen[str] | None = None


def saeclamp(
    *arguments: str, env: Mapping[str, str], cwd: Path | None = None, said: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `saeclamp ARGUMENTS` with this environment, in this folder, with this on its standard input."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("in", "out", "err")]
        files[0].write_text(said)
        status = _ask(
            arguments=[*arguments], environment=dict(env), cwd=str(cwd or Path.cwd()), files=[*map(str, files)]
        )
        return subprocess.CompletedProcess(["saeclamp", *arguments], status, *(path.read_text() for path in files[1:]))


def _ask(**command: Any) -> int:
    global _process
    with _lock:
        if _process is None:
            _process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forked_command"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads do not survive a fork
            )
            atexit.register(_process.kill)
        assert _process.stdin is not None
        assert _process.stdout is not None
        print(json.dumps(command), file=_process.stdin, flush=True)
        status: int = json.loads(_process.stdout.readline())
        return status


def main() -> None:
    """Import what takes long, and fork for whoever asks; in a fork, run what was asked for."""
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed while importing is no answer
    for name in HEAVY:
        importlib.import_module(name)
    assert not OF_THE_ENVIRONMENT & sys.modules.keys()
    assert threading.active_count() == 1
    gc.freeze()  # or each fork goes through all that was imported, and copies it
    for line in questions:
        pid = os.fork()
        if not pid:
            return _run(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


def _run(command: Mapping[str, Any]) -> None:
    signal.alarm(LIMIT_S)
    for number, path in enumerate(command["files"]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(command["environment"])
    os.chdir(command["cwd"])
    sys.argv = ["saeclamp", *command["arguments"]]
    sys.modules["saeclamp_server.__main__"].main()


if __name__ == "__main__":
    main()
