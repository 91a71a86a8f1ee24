"""Running the sandbox: a process of its own, with an empty environment, no input, and an end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from saeclamp_saes.conversion.sandbox_main import REFUSED, ConversionRequest
from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.sanitize import replace_control_chars

BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from saeclamp_saes.conversion.sandbox_main import main
sys.exit(main(sys.argv[2]))
"""
"""
Program of the process. Python's -I keeps the user's environment, PYTHONPATH and working folder out of it, so it takes our
own path without relative entries: however this package was found (installed, editable, by PYTHONPATH), the same is found.
"""
MAX_SENTENCE = 2000


def run_sandbox(request: ConversionRequest, folder: Path, timeout_seconds: float) -> None:
    """
    Run a request to its end. The caller has to check what it wrote.

    folder: the process's working folder, home and place for temporary files
    Raises CheckpointError with one sentence when it fails, dies or takes too long. Leaves no process behind.
    """
    path = json.dumps([entry for entry in sys.path if os.path.isabs(entry)])
    # a file and no pipe: nobody reads while the process is waited for, and a full pipe would stop it
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", BOOT, path, request.to_json()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
        )
        try:
            code = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise CheckpointError(
                f"{request.pickle or request.source} was not converted within {timeout_seconds:g} seconds; "
                "converting it was ended."
            ) from None
        finally:
            _kill(process)
        if code != 0:
            raise CheckpointError(_sentence(request, code, errors))


def _environment(folder: Path) -> dict[str, str]:
    kept = {
        name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ
    }  # where torch's libraries may be
    where = str(folder)
    return {
        **kept,
        "PATH": os.defpath,
        "HOME": where,
        "TMPDIR": where,
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and all it started, unless it has ended by itself."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # it leads a session, so a group, of its own
        process.wait()


def _sentence(request: ConversionRequest, code: int, errors: IO[bytes]) -> str:
    """Give the reason of a failure: the process's last line, made printable, or how it ended."""
    what = request.pickle or request.source
    if code == -signal.SIGXCPU:
        return f"{what} takes more than {request.limits.cpu_seconds} seconds of computing to convert; it was ended."
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - MAX_SENTENCE))
    lines = errors.read(MAX_SENTENCE).decode("utf-8", "replace").strip().splitlines()
    said = replace_control_chars(lines[-1], lambda _: "?") if lines else ""
    if code == REFUSED and said:
        return said
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"Converting {what} ended {how}{f' ({said})' if said else ''}."
