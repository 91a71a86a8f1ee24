"""vLLM's words go to a file, and the reason of an end is found in them."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from saeclamp_server.model_info import in_one_line
from saeclamp_server.startup.server_log import KEPT, find_error, find_fatal_error, killed

HEAD_SIZE = """\
INFO 11-29 23:30:00 [core.py:120] Initializing a V1 LLM engine
(EngineCore pid=77) ERROR 11-29 23:30:09 [core.py:1516] EngineCore failed to start.
(EngineCore pid=77) ERROR 11-29 23:30:09 [core.py:1516] Traceback (most recent call last):
(EngineCore pid=77) ERROR 11-29 23:30:09 [core.py:1516]   File "core.py", line 1480, in run_engine_core
(EngineCore pid=77) ERROR 11-29 23:30:09 [core.py:1516] ValueError: Head size 20 is not supported.
(EngineCore pid=77) Traceback (most recent call last):
(EngineCore pid=77) ValueError: Head size 20 is not supported.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
"""


@pytest.mark.parametrize(
    ("log", "found"),
    [
        pytest.param(
            HEAD_SIZE, "ValueError: Head size 20 is not supported", id="the-cause-and-not-what-follows-from-it"
        ),
        pytest.param(
            "torch.OutOfMemoryError: CUDA out of memory\nINFO x\n", "OutOfMemoryError: CUDA out of memory", id="module"
        ),
        pytest.param(
            "(EngineCore pid=7) ERROR 11-29 23:50:35 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly "
            "(exit code: -9), shutting down executor.\n(EngineCore pid=7) RuntimeError: cancelled\n",
            "a worker was killed, most likely because memory ran out",
            id="killed",
        ),
        pytest.param("INFO all is well\nAn Error: no\n", None, id="no-error"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_the_error_that_ended_an_engine_is_found(log: str, found: str | None) -> None:
    assert find_error(log) == found


MISTAKE = """\
(MainProcess pid=1476) ERROR 11-30 03:02:52 [api_router.py:75] Error in create_messages: \
max_completion_tokens=3000 cannot be greater than max_model_len=2048.
(MainProcess pid=1476) ERROR 11-30 03:02:52 [api_router.py:75] Traceback (most recent call last):
(MainProcess pid=1476) ERROR 11-30 03:02:52 [api_router.py:75]     raise VLLMValidationError(
(MainProcess pid=1476) ERROR 11-30 03:02:52 [api_router.py:75] vllm.exceptions.VLLMValidationError: \
max_completion_tokens=3000 cannot be greater than max_model_len=2048. Please request fewer output tokens. \
(parameter=max_completion_tokens, value=3000)
INFO:     127.0.0.1:59244 - "POST /v1/messages HTTP/1.1" 400 Bad Request
"""
FAILED_STEP = """\
(Worker pid=1766) ERROR 11-30 03:01:11 [live.py:120] Traceback (most recent call last):
(Worker pid=1766) ERROR 11-30 03:01:11 [live.py:120] RuntimeError: no room for its rows
"""
ENDED = """\
(Worker pid=1766) INFO 11-30 03:02:56 [multiproc_executor.py:843] Parent process exited, terminating worker queues
(MainProcess pid=1476) WARNING 11-30 03:02:56 [core_client.py:817] [shutdown] MPClient: engine core exited unexpectedly; \
starting cleanup
(MainProcess pid=1476) ERROR 11-30 03:02:56 [async_llm.py:906] AsyncLLM output_handler failed.
(MainProcess pid=1476) ERROR 11-30 03:02:56 [async_llm.py:906] Traceback (most recent call last):
(MainProcess pid=1476) ERROR 11-30 03:02:56 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore \
encountered an issue. See stack trace (above) for the root cause.
"""
FATAL = """\
(Worker pid=19534) ERROR 11-30 02:37:46 [multiproc_executor.py:1063] RuntimeError: Unsupported CPU attention: head_dim=20
(EngineCore pid=19528) ERROR 11-30 02:37:46 [core.py:1512] EngineCore encountered a fatal error.
(EngineCore pid=19528) ERROR 11-30 02:37:46 [core.py:1512] Traceback (most recent call last):
(EngineCore pid=19528) ERROR 11-30 02:37:46 [core.py:1512]     raise RuntimeError(
(EngineCore pid=19528) ERROR 11-30 02:37:46 [core.py:1512] RuntimeError: Worker failed with error 'Unsupported CPU attention'
(MainProcess pid=19521) ERROR 11-30 02:37:46 [async_llm.py:906] AsyncLLM output_handler failed.
"""
WORKER_KILLED = """\
(EngineCore pid=7) ERROR 11-29 23:50:35 [multiproc_executor.py:315] Worker proc VllmWorker-0 died unexpectedly \
(exit code: -9), shutting down executor.
(EngineCore pid=7) ERROR 11-29 23:50:35 [core.py:1512] EngineCore encountered a fatal error.
(EngineCore pid=7) ERROR 11-29 23:50:35 [core.py:1512] RuntimeError: cancelled
"""


@pytest.mark.parametrize(
    ("log", "found"),
    [
        pytest.param(MISTAKE + ENDED, None, id="a-clients-mistake-is-not-the-reason"),
        pytest.param(FAILED_STEP + ENDED, None, id="nor-is-a-step-that-failed-earlier"),
        pytest.param(
            FAILED_STEP + MISTAKE + FATAL + MISTAKE,
            "RuntimeError: Worker failed with error 'Unsupported CPU attention'",
            id="its-last-words-are",
        ),
        pytest.param(
            MISTAKE + WORKER_KILLED, "a worker was killed, most likely because memory ran out", id="or-a-dead-worker"
        ),
    ],
)
def test_the_death_of_an_engine_is_explained_by_the_last_words_of_its_own(log: str, found: str | None) -> None:
    assert find_fatal_error(log) == found


def test_what_a_signal_ended_was_killed() -> None:
    assert killed(9) == "was killed, most likely because memory ran out"
    assert killed(11) == "was killed by signal 11 (Segmentation fault)"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one\ntwo", "one"),
        ("unrecognized arguments: --x", "unrecognized arguments: --x"),
        (
            "1 validation error for ModelConfig\n  Value error, the length is too long. [type=value_error, input_value=1]\n"
            "    For further information visit https://errors.pydantic.dev\n",
            "the length is too long",
        ),
        (
            "argument --kv-transfer-config: 1 validation error for KVTransferConfig\n"
            "  Value error, Please specify kv_role [type=value_error]\n    For further information visit x",
            "argument --kv-transfer-config: Please specify kv_role",
        ),
        ("", ""),
    ],
)
def test_other_libraries_messages_are_told_in_one_line(message: str, line: str) -> None:
    assert in_one_line(message) == line


PROGRAM = """
import logging, os, subprocess, sys
from saeclamp_saes.cli.log_handler import ROOT_LOGGER, set_up_log
from saeclamp_server.startup.server_log import ServerLog
log = ServerLog()
set_up_log(ROOT_LOGGER, log.handler)
log.to_file()
print("noise of a library")
print("noise on stderr", file=sys.stderr)
subprocess.run([sys.executable, "-c", "print('noise of a child')"])
os.write(2, b"noise of C\\n")
logging.getLogger("saeclamp.server").info("ready")
log.show("curl")
print(log.path, file=log._output)
"""


def run(folder: Path, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SAECLAMP_CACHE": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120, check=True
    )


def test_the_terminal_shows_our_few_words_and_the_file_all_others(tmp_path: Path) -> None:
    done = run(tmp_path)
    path = Path(done.stdout.splitlines()[-1])
    assert (done.stderr, done.stdout.splitlines()[0]) == ("saeclamp: ready\n", "curl")
    assert sorted(path.read_text().splitlines()) == [
        "noise of C",
        "noise of a child",
        "noise of a library",
        "noise on stderr",
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "requests may be logged"


def test_the_oldest_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for number in range(KEPT + 5):
        (folder / f"serve-20250101-0000{number:02}-1.log").touch()
    (folder / "mine.log").touch()
    run(tmp_path)
    names = sorted(path.name for path in folder.glob("serve-*.log"))
    assert len(names) == KEPT + 1
    assert names[0] == "serve-20250101-000005-1.log"
    assert (folder / "mine.log").exists()


CONFIGURED = """
import json, logging, os, sys
from pathlib import Path
from saeclamp_saes.cli.log_handler import ROOT_LOGGER, set_up_log
from saeclamp_server.startup.server_log import ServerLog
log = ServerLog()
set_up_log(ROOT_LOGGER, log.handler)
log.to_file()
ours, traces = logging.getLogger("saeclamp.server"), logging.getLogger("saeclamp_server.api.error_handlers")
traces.error("a request failed")
ours.info("our 1st")

from vllm.config.logging import LoggingConfig
from vllm.logger import configure_logging
configure_logging(LoggingConfig())
logging.getLogger("vllm.engine").info("theirs")
ours.info("our 2nd")
ours.warning("our 3rd")

file = Path(os.environ["SAECLAMP_CACHE"]) / "log.json"
everything = {"handlers": ["all"], "level": "DEBUG"}
mine = {"version": 1, "handlers": {"all": {"class": "logging.StreamHandler"}}, "root": everything}
file.write_text(json.dumps(mine))
configure_logging(LoggingConfig(pylogging_config_file=str(file)))
logging.getLogger("a.third.library").info("theirs too")
ours.info("our 4th")

import uvicorn
uvicorn.Config("an:app", log_config=mine)
ours.info("our 5th")
uvicorn.Config("an:app")
ours.info("our 6th")
print(log.path, file=log._output)
"""


def test_no_configuration_of_vllms_or_uvicorns_log_doubles_or_drops_a_line(tmp_path: Path) -> None:
    done = run(tmp_path, CONFIGURED)
    ordinals = ("1st", "2nd", "3rd", "4th", "5th", "6th")
    assert done.stderr.splitlines() == [f"saeclamp: our {ordinal}" for ordinal in ordinals]
    log = Path(done.stdout.strip()).read_text()
    assert not re.search(r"our \d", log)
    assert "a request failed" in log
    assert len(re.findall("theirs$", log, re.MULTILINE)) == 1
    assert "theirs too" in log


LONG_LOG = """
import sys
from saeclamp_server.startup.server_log import ServerLog
log = ServerLog()
log.to_file()
print("(EngineCore pid=7) ERROR 11-29 23:50:35 [core.py:1512] EngineCore encountered a fatal error.")
print("(EngineCore pid=7) ERROR 11-29 23:50:35 [core.py:1512] RuntimeError: the end")
for _ in range(10_000):
    print("(MainProcess pid=6) ERROR 11-29 23:50:36 [serving.py:500] vllm.v1.engine.exceptions.EngineDeadError: it died")
sys.stdout.flush()
print(log.fatal_error(), file=log._output)
"""


def test_the_last_words_are_found_however_much_the_server_says_of_them(tmp_path: Path) -> None:
    assert run(tmp_path, LONG_LOG).stdout == "RuntimeError: the end\n"


def test_where_no_file_can_be_made_the_terminal_shows_everything(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    done = run(tmp_path)
    assert "no log can be written" in done.stderr
    assert "noise on stderr" in done.stderr
