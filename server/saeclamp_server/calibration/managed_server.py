"""A `saeclamp serve` for the time of a run, in a process group of its own, which is killed whatever happens."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from saeclamp_saes.io.sanitize import escape_control_chars
from saeclamp_server.calibration.errors import CalibrationError

logger = logging.getLogger("saeclamp.server")

POLL_S = 0.5
PROGRESS_S = 20
STOP_S = 20
"""Seconds that a server may take to end after SIGTERM."""

DYING_S = 2.0
"""Seconds in which a server that does not answer any more ends, if it is dying."""

PR_SET_PDEATHSIG = 1
"""Linux's `prctl` option: signal that a process gets when its parent has ended."""

MODULE = (sys.executable, "-m", "saeclamp_server")


@contextmanager
def managed_server(model: str, sae: str, engine_argv: Sequence[str], command: Sequence[str] = MODULE) -> Iterator[str]:
    """
    Serve a model with an SAE, and give the server's URL once it answers.

    engine_argv: flags of `saeclamp serve`
    command:     the command `saeclamp`
    Raises CalibrationError with the server's last words where it does not start, or ends before the block does.
    """
    port = _free_port()
    # behind the user's flags: argparse takes the last --host and --port
    flags = [*engine_argv, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="saeclamp-") as folder:
        log = Path(folder) / "server.log"
        process = _start([*command, "serve", model, "--sae", sae, *flags], log)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, log)
            try:
                yield url
            except CalibrationError as exc:
                if not _is_dying(process):
                    raise
                raise CalibrationError(f"The server has ended: {last_words(log)} The same command goes on.") from exc
        finally:
            _end(process)


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {"VLLM_LOGGING_LEVEL": "WARNING", **os.environ}
    # loaded here: between fork and exec as little as possible may happen
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def end_with_parent() -> None:
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C is ours to pass on
            preexec_fn=end_with_parent,
            env=environment,
        )


def _is_dying(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether the server has ended, or does soon: its connections close before the process is gone."""
    try:
        process.wait(DYING_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    logger.info("starting a server (half a minute with --enforce-eager, some minutes when it compiles) ...")
    started = said = time.monotonic()
    while not _is_ready(url):
        if process.poll() is not None:
            raise CalibrationError(f"The server did not start: {last_words(log)}")
        if time.monotonic() - said > PROGRESS_S:
            said = time.monotonic()
            logger.info(f"the server is still starting ({said - started:.0f} s) ...")
        time.sleep(POLL_S)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def last_words(log: Path) -> str:
    """Find the line that says why a server ended: its own sentence, else the last error, else the last line of all."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if not lines:
        return "it said nothing."
    # its sentence is not always the last line: Python's resource tracker warns of what the engine left
    traced = max((number for number, line in enumerate(lines) if line.startswith("Traceback")), default=-1)
    own = [line for line in lines[traced + 1 :] if line.startswith("saeclamp: ") and not line.endswith("...")]
    errors = [line for line in lines if "Error:" in line]
    return escape_control_chars((own or errors or lines)[-1].removeprefix("saeclamp: "))


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    finally:  # also when Ctrl-C is pressed again
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # engines do not always go when their parent does
        process.wait()


def _free_port() -> int:
    # it may be taken by another process until the server listens; then the start fails, and says so
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
