"""A standard output that is closed or full is told in one sentence, whatever the command; a closed stderr hides nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = ["sae list --catalogue", "sae info bundled", "--help", "--version", "serve --help", "features --help"]
CLOSED = "saeclamp: The standard output is closed.\n"
FULL = "saeclamp: The standard output takes no more: No space left on device.\n"


def run(command: str, redirected: str) -> subprocess.CompletedProcess[str]:
    shell = f"{sys.executable} -m saeclamp_server {command} {redirected}"
    return subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", [*COMMANDS, "features search sea --url http://127.0.0.1:1", "serve none"])
def test_a_closed_output_is_one_sentence(command: str) -> None:
    done = run(command, ">&-")
    assert (done.returncode, done.stderr) == (1, CLOSED)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_output_is_one_sentence(command: str) -> None:
    done = run(command, ">/dev/full")
    assert (done.returncode, done.stderr) == (1, FULL)


@pytest.mark.parametrize("redirected", [">&- 2>&-", ">/dev/full 2>/dev/full", ">/dev/full 2>&-"])
def test_where_there_is_nothing_to_say_it_to_the_status_says_it(redirected: str) -> None:
    done = run("sae list", redirected)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "<&-", "<&- 2>&-"])
def test_what_is_not_needed_may_be_closed(redirected: str) -> None:
    done = run("sae list", redirected)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("NAME\t")


def test_an_error_does_not_go_to_the_output_where_stderr_is_closed() -> None:
    done = run("sae info nowhere", "2>&-")
    assert (done.returncode, done.stdout) == (1, "")


def test_a_question_that_nobody_can_answer_is_a_no() -> None:
    done = run("vectors delete joy --url http://127.0.0.1:1", "<&-")
    assert done.returncode == 1
    assert done.stderr.startswith("saeclamp: "), done.stderr
    assert len(done.stderr.splitlines()) == 1
