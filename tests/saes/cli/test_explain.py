"""`saeclamp labels explain` on the command line."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.explain_endpoint import DEAD, WORDS, Failure, Rules, endpoint, labels, said

from saeclamp_saes.cli import labels as command
from saeclamp_saes.errors import LabelError
from saeclamp_saes.labelling.table import LabelTable


@pytest.fixture
def path(tmp_path: Path) -> Path:
    labels().write(tmp_path / "labels.parquet")
    return tmp_path / "labels.parquet"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(command.KEY, raising=False)


def run(*argv: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["labels", *map(str, argv)])
    status: int = args.run(args)
    return status


def test_facts_and_costs_are_printed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with endpoint(Rules()) as url:
        assert run("explain", path, "--base-url", url, "--model", "stub", "--features", "0,2-3,8") == 0
    told = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert told == {
        "written": str(path),
        "explained": "3 now, 0 before",
        "mean score (balanced accuracy)": told["mean score (balanced accuracy)"],
        "kept as they were": "0",
        "too few examples": "1",
        "not explained": "0",
        "tokens used": "1,200 read and 84 written in 12 answers",
    }
    assert 0.9 < float(told["mean score (balanced accuracy)"]) <= 1.0
    assert set(LabelTable.read(path).explanations()) == {0, 2, 3}


def test_json_is_all_that_is_printed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = Rules(never={"<< law>>": Failure(content="no")}, said_usage=False)
    with endpoint(rules) as url:
        status = run("explain", path, "--base-url", url, "--model", "stub", "--json", "--features", f"1,2,{DEAD}")
    printed = capsys.readouterr()
    told: dict[str, Any] = json.loads(printed.out)
    assert status == 1
    assert (told["path"], told["explained"], told["too_few_examples"]) == (str(path), 1, [DEAD])
    assert list(told["failed"]) == ["2"]
    assert told["usage"]["uncounted"] == told["usage"]["requests"] == 7
    assert printed.err.splitlines() == [
        "saeclamp: feature 2 was not explained: the model does not answer as asked, but with 'no'",
        "saeclamp: the same command tries these again.",
    ]


def test_the_key_comes_from_the_environment(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("--model", "stub", "--features", "0")
    with endpoint(Rules(key="sk-mine")) as url:
        monkeypatch.setenv("MY_KEY", "sk-mine\n")
        assert run("explain", path, "--base-url", url, *argv, "--api-key-env", "MY_KEY") == 0
        with pytest.raises(LabelError, match="the key is wrong or missing"):
            run("explain", path, "--base-url", url, "--model", "stub", "--features", "1")
        monkeypatch.setenv("MY_KEY", "sk-\nmine")
        with pytest.raises(LabelError, match="MY_KEY holds is no key") as refused:
            run("explain", path, "--base-url", url, *argv, "--api-key-env", "MY_KEY")
    assert "sk-" not in "".join(capsys.readouterr()) + str(refused.value)


def test_after_ctrl_c_what_was_finished_is_in_the_labels(path: Path) -> None:
    code = (
        "import argparse, sys; from saeclamp_saes.cli import labels\n"
        "parser = argparse.ArgumentParser(); labels.register(parser.add_subparsers())\n"
        "args = parser.parse_args(sys.argv[1:]); sys.exit(args.run(args))"
    )
    lines = path.parent / "labels.parquet.explained.jsonl"
    with endpoint(Rules(delay=0.1)) as url:
        argv = ["labels", "explain", str(path), "--base-url", url, "--model", "stub", "--concurrency", "1"]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *argv], env=os.environ, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        while not (lines.exists() and lines.read_bytes().count(b"\n") >= 2):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "saeclamp: stopped; the same command goes on with it.\n"
    explanations = LabelTable.read(path).explanations()
    assert 2 <= len(explanations) < len(WORDS)
    assert set(explanations) == {json.loads(line)["index"] for line in lines.read_text().splitlines()}
    assert all(one.text == said(WORDS[index]) for index, one in explanations.items())


def test_labels_that_are_not_there_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"There are no labels at .*: make them with `saeclamp label`"):
        run("explain", tmp_path / "labels.parquet", "--base-url", "http://x/v1", "--model", "m")


@pytest.mark.parametrize(
    "argv",
    [
        ["--features", "3-1"],
        ["--features", "a"],
        ["--features", "1,,2"],
        ["--features", "0-999999999"],
        ["--concurrency", "0"],
        ["--retries", "-1"],
        ["--timeout", "0"],
        ["--body", "[1]"],
        ["--body", "{"],
        ["--body", '{"max_tokens": NaN}'],
        ["--body", '{"temperature": -Infinity}'],
        ["--body", '{"temperature": 1e999}'],
        pytest.param(["--body", '{"a": ' * 100_000], id="body-deeply-nested"),
    ],
)
def test_numbers_that_are_none_are_usage_errors(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        run("explain", "x.parquet", "--base-url", "u", "--model", "m", *argv)
    assert refused.value.code == 2
