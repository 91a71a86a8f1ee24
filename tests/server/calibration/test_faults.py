"""`saeclamp calibrate` when it is stopped, or its server or its files are not as they should be: nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.calibration_stub import NUM_PROMPTS, Asked, Stub, curve_of, run, serving, words, write_sae
from tests.support.scripted_server import chat_answer, hang_up, reply

from saeclamp_server.calibration.errors import CalibrationError
from saeclamp_server.calibration.storage import locked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sae(tmp_path)


@pytest.fixture
def server(folder: Path) -> Iterator[Stub]:
    with serving(folder) as running:
        yield running


def test_a_run_that_was_cut_off_goes_on_and_comes_to_the_same(server: Stub, folder: Path) -> None:
    server.fault = lambda asked: hang_up if asked.act == 25 else None
    with pytest.raises(CalibrationError, match=r"could not answer: .*The same command goes on"):
        run(words(server, folder, "--at-once", "1"), max_retries=0)
    (kept,) = folder.glob("calibration-answers-*.jsonl")
    with kept.open("a") as file:
        file.write('{"feature": 3, "act": 25.0, "ans')  # as if it had died in the middle of a line
    assert not (folder / "calibration.json").exists()
    server.fault = lambda asked: None
    server.asked.clear()
    assert run(words(server, folder, "--at-once", "1")) == 0
    assert sorted(server.acts()) == [25] * NUM_PROMPTS + [90] * NUM_PROMPTS
    resumed = curve_of(folder)
    assert not kept.exists()
    (folder / "calibration.json").unlink()
    assert run(words(server, folder, "--keep-answers")) == 0
    assert curve_of(folder) == resumed
    assert [path.name for path in folder.glob("calibration-answers-*")] == [f"{kept.stem}.kept.jsonl"]


def test_kept_answers_stay_whatever_later_runs_are_told(server: Stub, folder: Path) -> None:
    assert run(words(server, folder, "--keep-answers")) == 0
    (kept,) = folder.glob("calibration-answers-*.jsonl")
    answers = kept.read_text()
    assert run(words(server, folder)) == 0
    assert kept.read_text() == answers
    server.asked.clear()
    assert run(words(server, folder, "--strengths", "0.15,0.35")) == 0
    assert set(server.acts()) == {35}  # the kept ones are gone on with
    assert kept.read_text().startswith(answers)


def test_answers_that_a_stopped_run_needs_stay_until_it_has_gone_on(server: Stub, folder: Path) -> None:
    server.fault = lambda asked: hang_up if asked.act == 25 and not asked.is_check else None
    with pytest.raises(CalibrationError, match="The same command goes on"):
        run(words(server, folder, "--at-once", "1"), max_retries=0)
    server.fault = lambda asked: None
    assert run(words(server, folder, "--strengths", "0.05,0.45")) == 0
    assert run(words(server, folder, "--concept", "bridge", features="food")) == 0
    server.asked.clear()
    assert run(words(server, folder)) == 0
    assert set(server.acts()) == {25, 90}
    assert not list(folder.glob("calibration-answers-*"))


DAMAGED = {
    "no JSON": b"\x00\xff\n",
    "a list": b"[1]\n",
    "deeply nested": b"[" * 100_000 + b"\n",
    "no answers": b'{"feature": null, "act": null}\n',
    "another decoding": b'{"feature": null, "act": null, "answers": {"sampled": []}}\n',
    "too few answers": b'{"feature": null, "act": null, "answers": {"greedy": []}}\n',
}


def damaged_answer(**values: Any) -> bytes:
    answers = [
        {"prompt": number, "text": "x", "num_tokens": 1, "nll": 1.0, "seed": None, "dose": None, **values}
        for number in range(NUM_PROMPTS)
    ]
    return json.dumps({"feature": None, "act": None, "answers": {"greedy": answers}}).encode() + b"\n"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of answers that a whole run keeps."""
    folder = write_sae(tmp_path_factory.mktemp("kept"))
    with serving(folder) as server:
        assert run(words(server, folder, "--keep-answers")) == 0
    (kept,) = folder.glob("calibration-answers-*.jsonl")
    return kept


@pytest.mark.parametrize(
    "line",
    [
        *(pytest.param(line, id=name) for name, line in DAMAGED.items()),
        pytest.param(damaged_answer(text=5), id="a text that is none"),
        pytest.param(damaged_answer(nll="1"), id="a likelihood that is none"),
        pytest.param(damaged_answer(nll=10**400), id="an endless likelihood"),
        pytest.param(damaged_answer(nll=float("nan")), id="a likelihood that is no number"),
        pytest.param(damaged_answer(prompt=7), id="another prompt"),
        pytest.param(damaged_answer(more=1), id="an unknown field"),
    ],
)
def test_a_damaged_line_of_answers_is_named_and_left_alone(
    server: Stub, folder: Path, answers: Path, line: bytes
) -> None:
    good, kept = answers.read_bytes(), folder / answers.name
    kept.write_bytes(good + line)
    with pytest.raises(CalibrationError, match=r"jsonl, line 6 holds no answers of this calibration: delete that line"):
        run(words(server, folder, "--strengths", "0.35"))
    assert kept.read_bytes() == good + line


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_keeps_what_is_done(server: Stub, folder: Path, number: int, status: int) -> None:
    waiting, go = threading.Event(), threading.Event()

    def hang(asked: Asked) -> Any:
        if asked.act == 25:
            waiting.set()
            go.wait(60)
        return None

    server.fault = hang
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "saeclamp_server", *words(server, folder, "--at-once", "1")],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.wait(120)
    time.sleep(0.2)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    go.set()
    assert process.returncode == status
    assert (said.splitlines()[-1] == "saeclamp: stopped; the same command goes on with it.") == (status == 130)
    assert "Traceback" not in said
    (kept,) = folder.glob("calibration-answers-*.jsonl")
    assert [json.loads(line)["act"] for line in kept.read_text().splitlines()] == [None, 5, 15]


def test_a_busy_server_is_asked_again_when_it_says(server: Stub, folder: Path) -> None:
    times: list[float] = []

    def busy(asked: Asked) -> Any:
        if asked.act == 15 and asked.body["messages"][0]["content"] == "2":
            times.append(time.monotonic())
            if len(times) == 1:
                return reply({"error": {"message": "busy"}}, status=429, headers={"retry-after": "1"})
        return None

    server.fault = busy
    assert run(words(server, folder)) == 0
    assert len(times) == 2
    assert 1 <= times[1] - times[0] < 5
    assert len(curve_of(folder)["curve"]) == 4


def test_a_refusal_is_passed_on_in_a_sentence(server: Stub, folder: Path) -> None:
    server.fault = lambda asked: (
        reply({"error": {"message": "Not\nthat\x1b[31m one."}}, status=400)
        if asked.act and not asked.is_check
        else None
    )
    with pytest.raises(CalibrationError, match=r"could not answer: HTTP 400: Not that\\x1b\[31m one\.$"):
        run(words(server, folder))
    (kept,) = folder.glob("calibration-answers-*.jsonl")
    assert len(kept.read_text().splitlines()) == 1  # the unsteered answers


def test_a_model_without_a_chat_template_leads_to_plain(server: Stub, folder: Path) -> None:
    no = {"error": {"message": "default chat template is no longer allowed"}}
    server.fault = lambda asked: reply(no, status=400) if "messages" in asked.body else None
    with pytest.raises(CalibrationError, match="The model has no chat template, so give --plain"):
        run(words(server, folder))


def test_a_server_with_other_weights_is_refused_before_any_answer(server: Stub, folder: Path) -> None:
    server.sae_sha256 = "0" * 64
    with pytest.raises(CalibrationError, match="serves other weights, or other options, under the name 'mine'"):
        run(words(server, folder))
    assert server.answers() == []


def test_a_server_without_the_sae_is_refused_before_any_answer(server: Stub, folder: Path) -> None:
    no = {"error": {"message": "No SAE named 'mine' is loaded. Loaded: other.", "code": "unknown_sae"}}
    server.fault = lambda asked: reply(no, status=400) if asked.act else None
    with pytest.raises(CalibrationError, match=r"does not serve the SAE under this name: .*Loaded: other\.\)$"):
        run(words(server, folder))
    assert server.answers() == []
    assert not list(folder.glob("calibration*"))


def test_the_highest_strengths_are_tried_before_any_answer(server: Stub, folder: Path) -> None:
    assert run(words(server, folder, "--concept", "3=bridge", "--concept", "5=bridge", features="3,5")) == 0
    checked = [asked for asked in server.asked if asked.is_check]
    assert sorted(asked.act for asked in checked) == [45, 90]
    assert set(map(id, server.asked[:2])) == set(map(id, checked))
    no = {"error": {"message": "This could move a token by 9 times the length."}}
    server.fault = lambda asked: reply(no, status=400) if asked.act > 90 else None
    server.asked.clear()
    with pytest.raises(CalibrationError, match=r"could not answer: HTTP 400: This could move .* length\.$"):
        run(words(server, folder, "--strengths", "0.35,0.95"))
    assert server.answers() == []


def test_a_server_that_returns_no_token_ids_is_refused(server: Stub, folder: Path) -> None:
    server.fault = lambda asked: reply(chat_answer("hello")) if "messages" in asked.body and not asked.act else None
    with pytest.raises(CalibrationError, match="returns no token ids, which perplexity needs"):
        run(words(server, folder))


def test_curves_of_other_weights_are_not_mixed_in(server: Stub, folder: Path) -> None:
    assert run(words(server, folder)) == 0
    kept = json.loads((folder / "calibration.json").read_text())
    kept["features"]["3"]["sae"]["sha256"] = "0" * 64
    (folder / "calibration.json").write_text(json.dumps(kept))
    with pytest.raises(CalibrationError, match="curves of other weights or options of the SAE: move it away"):
        run(words(server, folder))
    assert json.loads((folder / "calibration.json").read_text()) == kept


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 1, "features": {"3": {}}}'])
def test_a_file_of_curves_that_cannot_be_read_is_left_alone(server: Stub, folder: Path, content: str) -> None:
    (folder / "calibration.json").write_text(content)
    with pytest.raises(CalibrationError, match="is no readable file of curves"):
        run(words(server, folder))
    assert (folder / "calibration.json").read_text() == content


def test_two_runs_on_one_folder_do_not_meet(server: Stub, folder: Path) -> None:
    with locked(folder), pytest.raises(CalibrationError, match="Another calibration is at work"):
        run(words(server, folder))
