"""Every line of a trace is whole, none is lost at a normal end, and no request waits for a disk."""

from __future__ import annotations

import json
import os
import select
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saeclamp_server.trace import Trace, TraceError


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def trace(tmp_path: Path, said: list[str]) -> Iterator[Trace]:
    opened = Trace(tmp_path / "trace.jsonl")
    yield opened
    opened.close()


def test_lines_are_appended_in_order_and_none_is_lost_at_the_end(trace: Trace, said: list[str]) -> None:
    trace.path.write_text('{"n":"old"}\n')
    for number in range(5000):
        trace.write({"n": number, "text": "é\n"})
    trace.close()
    assert [line["n"] for line in lines(trace.path)] == ["old", *range(5000)]
    assert said == []
    assert stat.S_IMODE(trace.path.stat().st_mode) == 0o600


def test_a_process_that_ends_normally_has_written_all(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    code = (
        "from pathlib import Path; from saeclamp_server.trace import Trace\n"
        f"trace = Trace(Path({str(path)!r}))\n"
        "for number in range(2000): trace.write({'n': number})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [line["n"] for line in lines(path)] == list(range(2000))


@pytest.mark.parametrize(
    ("name", "says"),
    [("nosuch/trace", "No such file"), (".", "Is a directory"), ("pipe", "nobody reads this pipe")],
)
def test_a_file_that_cannot_be_opened_ends_the_start(tmp_path: Path, name: str, says: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TraceError, match=says):
        Trace(tmp_path / name)


def test_a_full_disk_is_said_once_and_costs_lines_not_requests(said: list[str]) -> None:
    trace = Trace(Path("/dev/full"))
    for number in range(100):
        trace.write({"n": number})
    trace.close()
    assert said == [
        "--trace /dev/full: a line was lost, since No space left on device. Requests are answered all the same."
    ]


def test_a_line_that_was_torn_is_ended_before_the_next(
    trace: Trace, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, num_calls = os.write, 0

    def short(file: int, content: bytes) -> int:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            raise OSError(28, "No space left on device")
        return write(file, content[:4] if num_calls == 2 else content)

    monkeypatch.setattr("saeclamp_server.trace.os.write", short)
    for number in (0, 1, 2):
        trace.write({"n": number, "pad": "x"})
    trace.close()
    texts = trace.path.read_text().splitlines()
    assert [json.loads(text)["n"] for text in (texts[0], texts[-1])] == [0, 2]
    assert len(texts) == 3
    assert "written again, after 1 lines were lost" in said[1]


def test_a_file_that_was_moved_away_is_followed_by_a_new_one(trace: Trace) -> None:
    trace.write({"n": 0})
    moved = trace.path.with_suffix(".1")
    wait_for(lambda: trace.path.read_text())
    trace.path.rename(moved)
    trace.write({"n": 1})
    trace.close()
    assert (lines(moved), lines(trace.path)) == ([{"n": 0}], [{"n": 1}])


def test_a_pipe_that_takes_a_files_place_loses_no_line_to_a_slow_reader(trace: Trace, said: list[str]) -> None:
    trace.write({"n": -1})
    wait_for(lambda: trace.path.read_text())
    trace.path.unlink()
    os.mkfifo(trace.path)
    reader = os.open(trace.path, os.O_RDONLY | os.O_NONBLOCK)
    for number in range(100):  # a pipe takes 64 KiB
        trace.write({"n": number, "text": "x" * 10_000})
    wait_for(lambda: select.select([reader], [], [], 0)[0])
    os.set_blocking(reader, True)
    with os.fdopen(reader) as pipe:
        found = [json.loads(pipe.readline())["n"] for _ in range(100)]
    assert (found, said) == ([*range(100)], [])


def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path, said: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    trace = Trace(tmp_path / "pipe", max_waiting=10, close_s=0.1)
    started = time.monotonic()
    for _ in range(200):
        trace.write({"text": "x" * 10_000})
    trace.close()
    assert time.monotonic() - started < 2
    assert "it is too slow" in said[0]
    os.close(reader)
