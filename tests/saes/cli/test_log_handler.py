"""A command line prints what our loggers are told; used as a library, they print nothing."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys

import pytest

from saeclamp_saes.cli.log_handler import ROOT_LOGGER, SAES_LOGGER, SERVER_LOGGER, LineHandler, set_up_log


def tell(*names: str) -> None:
    for name in names:
        logging.getLogger(name).info(f"a note of {name}")
        logging.getLogger(name).warning(f"a warning of {name}, 5 % of it")


def lines(name: str) -> str:
    return f"saeclamp: a note of {name}\nsaeclamp: a warning of {name}, 5 % of it\n"


def run(program: str) -> tuple[str, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    return done.stdout, done.stderr


def test_notes_and_warnings_are_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_log(ROOT_LOGGER)
    tell(SERVER_LOGGER, SAES_LOGGER)
    assert capsys.readouterr() == ("", lines(SERVER_LOGGER) + lines(SAES_LOGGER))


def test_a_command_may_print_what_the_server_part_says_alone(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_log()
    tell(SERVER_LOGGER, SAES_LOGGER)
    assert capsys.readouterr() == ("", lines(SERVER_LOGGER))


def test_there_is_one_handler_the_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    set_up_log()
    set_up_log(ROOT_LOGGER, LineHandler(stream))
    tell(SERVER_LOGGER)
    assert (stream.getvalue(), capsys.readouterr()) == (lines(SERVER_LOGGER), ("", ""))
    set_up_log(ROOT_LOGGER)
    tell(SAES_LOGGER)
    assert (stream.getvalue(), capsys.readouterr()) == (lines(SERVER_LOGGER), ("", lines(SAES_LOGGER)))


def test_a_line_leaves_at_once() -> None:
    class Stream(io.StringIO):
        num_flushed = 0

        def flush(self) -> None:
            self.num_flushed += 1

    stream = Stream()
    set_up_log(SERVER_LOGGER, LineHandler(stream))
    logging.getLogger(SERVER_LOGGER).info("now")
    assert stream.num_flushed == 1


def test_a_stream_that_takes_no_more_ends_a_command_as_print_does() -> None:
    with open("/dev/full", "w") as full:
        set_up_log(SERVER_LOGGER, LineHandler(full))
        with pytest.raises(OSError, match="No space left"):
            logging.getLogger(SERVER_LOGGER).info("lost")
        with pytest.raises(OSError, match="No space left"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_a_configuration_that_disables_all_others_leaves_ours(capsys: pytest.CaptureFixture[str]) -> None:
    program = """
import logging, logging.config
from saeclamp_saes.cli.log_handler import ROOT_LOGGER, set_up_log
set_up_log(ROOT_LOGGER)
other = logging.getLogger("other")
logging.config.dictConfig({
    "version": 1,
    "handlers": {"all": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["all"], "level": "DEBUG"},
})
assert other.disabled
for name in ("saeclamp.server", "saeclamp.saes"):
    logging.getLogger(name).info(name)
"""
    assert run(program) == ("", "saeclamp: saeclamp.server\nsaeclamp: saeclamp.saes\n")


def test_the_library_prints_nothing_unless_its_user_has_logging_do_so() -> None:
    program = """
import logging, sys
import saeclamp_saes, saeclamp_server
def tell():
    for name in ("saeclamp.server", "saeclamp.saes"):
        logging.getLogger(name).info("a note")
        logging.getLogger(name).warning("a warning")
tell()
logging.basicConfig(format="%(name)s %(levelname)s %(message)s", level="INFO", stream=sys.stdout)
tell()
"""
    both = "".join(
        f"{name} {line}\n" for name in (SERVER_LOGGER, SAES_LOGGER) for line in ("INFO a note", "WARNING a warning")
    )
    assert run(program) == (both, "")
