"""What only vLLM's own parser and the socket can tell is still one sentence, before the engine starts."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from saeclamp_server.packaged_model import PACKAGED_MODEL


def refusal(*flags: str) -> list[str]:
    command = [sys.executable, "-m", "saeclamp_server", "serve", PACKAGED_MODEL, "--sae", "bundled", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("saeclamp")]


@pytest.mark.usefixtures("model_folder")
def test_settings_that_cannot_be_steered_are_refused() -> None:
    assert refusal("--tensor-parallel-size", "2")[-1].endswith(
        "--tensor-parallel-size is not supported with steering yet."
    )
    assert "use --dtype bfloat16 or float32" in refusal("--dtype", "float16")[-1]
    assert "unrecognized arguments: --no-such-flag" in refusal("--no-such-flag")[-1]


@pytest.mark.usefixtures("model_folder")
def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert refusal("--port", str(port))[-1] == (
            f"saeclamp: Cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port."
        )
