"""What `saeclamp calibrate` cannot do is said in a sentence, before anything is asked."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.calibration_stub import Stub, run, serving, words, write_sae
from tests.support.scripted_server import ScriptedServer, reply

from saeclamp_saes.errors import UserError
from saeclamp_server.calibration.errors import CalibrationError
from saeclamp_server.cli.args import parse_args


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sae(tmp_path)


@pytest.fixture
def server(folder: Path) -> Iterator[Stub]:
    with serving(folder) as running:
        yield running


@pytest.mark.parametrize(
    ("features", "more", "says"),
    [
        ("24", (), "There is no feature 24: SAE 'mine' has features 0 to 23"),
        ("sea", (), "has no feature named 'sea'. Named: bridge, food, law"),
        ("bridge,3", (), "Feature 3 is named twice"),
        (",", (), "Name at least one feature"),
        ("law", (), "Feature law has no known maximum activation.*give --max-act law=VALUE"),
        ("7=food", ("--max-act", "1"), "'food' is the name of feature 5 already"),
        ("7=a b", ("--max-act", "1"), "'a b' cannot be a feature's name"),
        ("bridge,food", (), "--concept must say which of the features it is for"),
        ("bridge", ("--concept", "food=soup"), "--concept is given for 'food', which is not among"),
        ("bridge", ("--concept", "a", "--concept", "b"), "--concept is given twice"),
        ("bridge", ("--judge", "similarity"), "There are no texts to judge feature bridge by"),
        ("bridge", ("--examples", "nowhere.parquet"), "There are no labels at nowhere.parquet"),
        ("bridge", ("--prompts", "nowhere.txt"), "nowhere.txt cannot be read"),
        ("bridge", ("--model", "other"), "serves tiny, not other"),
        (
            "bridge",
            ("--strengths", "1,1e6"),
            r"feature bridge would be clamped to 1e\+08, but a server takes from .* 1e\+06",
        ),
        ("bridge", ("--max-act", "1e300"), "would be clamped to .*: give other --strengths, or another --max-act"),
        ("bridge", ("--max-act", "1e300", "--strengths", "1e300"), "would be clamped to inf"),
        ("bridge", ("--max-act", "1e-300"), "would be clamped to 5e-302, but a server takes from 1.2e-38"),
        ("bridge", ("--", "--enforce-eager"), "with --url there is none to start"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_asked(
    server: Stub, folder: Path, features: str, more: tuple[str, ...], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        run(words(server, folder, *more, features=features) if more[:1] != ("--",) else [*words(server, folder), *more])
    assert server.asked == []
    assert not list(folder.glob("calibration*"))


def test_a_feature_that_nothing_is_known_of_is_refused(server: Stub, folder: Path) -> None:
    arguments = words(server, folder, features="food")
    at = arguments.index("--concept")
    with pytest.raises(CalibrationError, match="Nothing tells whether an answer is about feature food: give words"):
        run(arguments[:at] + arguments[at + 2 :])


def test_neither_a_model_nor_a_server_is_refused(folder: Path) -> None:
    with pytest.raises(CalibrationError, match="Give --model MODEL to have it served, or the --url"):
        run(["calibrate", str(folder), "--features", "bridge"])


def test_no_server_at_the_url_is_said_in_a_sentence(folder: Path) -> None:
    with pytest.raises(CalibrationError, match=r"No server answers at http://127\.0\.0\.1:9"):
        run(["calibrate", str(folder), "--features", "bridge", "--concept", "x", "--url", "http://127.0.0.1:9"])


@pytest.mark.parametrize("url", ["http://127.0.0.1:x", "http://[::1", f"http://{'a' * 70}.com", "here", ""])
def test_a_url_that_is_none_is_said_in_a_sentence(folder: Path, url: str) -> None:
    with pytest.raises(CalibrationError, match=r"No server answers at .*: |--url: .* is no address such as "):
        run(["calibrate", str(folder), "--features", "bridge", "--concept", "x", "--url", url])


def test_a_server_that_wants_a_key_says_where_it_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAECLAMP_API_KEY", raising=False)
    guarded = ScriptedServer()
    stop = guarded.run()
    guarded.will(reply({"error": "Unauthorized"}, status=401))
    try:
        with pytest.raises(CalibrationError, match="wants its API key: set SAECLAMP_API_KEY"):
            run(["calibrate", str(folder), "--features", "bridge", "--concept", "x", "--url", guarded.url])
    finally:
        stop()


def test_a_server_that_says_nothing_is_given_up(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(CalibrationError, match=rf"^No server answers at {url} within 1 seconds\.$"):
            run(["calibrate", str(folder), "--features", "bridge", "--concept", "x", "--url", url], first_answer_s=1)
    assert time.monotonic() - started < 20


def test_words_separated_by_commas_are_refused(folder: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        parse_args(["calibrate", str(folder), "--features", "1", "--concept", "1=food,dish"])
    assert "'food,dish' holds a comma: separate words with semicolons" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "more",
    [("--strengths", "0.2,x"), ("--strengths", "-1"), ("--tokens", "0"), ("--concept", ";"), ("--max-act", "a=0")],
)
def test_a_malformed_value_is_a_usage_error(folder: Path, more: tuple[str, ...], capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        parse_args(["calibrate", str(folder), "--features", "1", *more])
    assert left.value.code == 2
    assert more[0] in capsys.readouterr().err


def test_the_command_line_needs_no_torch_to_explain_itself() -> None:
    code = "import sys; from saeclamp_server.cli.args import parse_args\n"
    code += "try: parse_args(['calibrate', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "0.25,0.4,0.5" in done.stdout
