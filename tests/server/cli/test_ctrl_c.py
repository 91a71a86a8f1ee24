"""Ctrl-C ends a long command at once: it hangs up, by which the server's work ends too."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from tests.support.scripted_server import ScriptedServer, stream_for_ever

PROGRESS = f"data: {json.dumps({'type': 'progress', 'what': 'reading', 'done': 1, 'of': 2})}\n\n".encode()


@pytest.mark.parametrize(
    "words",
    [
        ("features", "suggest", "talk about the sea"),
        ("features", "attribute", "We sailed out to"),
        ("compare", "Hello", "--clamp", "bundled/sea=1"),
    ],
)
def test_ctrl_c_hangs_up(words: tuple[str, ...]) -> None:
    server = ScriptedServer()
    stop = server.run()
    server.will(stream_for_ever(PROGRESS))

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in the background inherits that it is ignored

    command = [sys.executable, "-m", "saeclamp_server", *words, "--url", server.url]
    try:
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as ran:
            end = time.monotonic() + 60
            while not server.seen and time.monotonic() < end:
                time.sleep(0.05)
            assert server.seen[0].headers["accept"] == "text/event-stream"
            ran.send_signal(signal.SIGINT)
            assert server.hung_up.wait(10)
            _, said = ran.communicate(timeout=30)
    finally:
        stop()
    assert ran.returncode == 130
    assert "Traceback" not in said
