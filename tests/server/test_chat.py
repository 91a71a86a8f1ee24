"""A chat in a terminal: an answer can be stopped, a line edited, and the steering changed between two questions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.client.scripted_server import (
    DONE,
    MODELS,
    RECEIPT,
    Act,
    Handler,
    ScriptedServer,
    chat_chunk,
    reply,
    sse,
    stream,
    stream_for_ever,
)
from tests.server.typed_terminal import CTRL_C, CTRL_D, LEFT, UP, run, typed

from saeclamp_server.terminal.layout import cell_width

LONG = "The weather in the mountains changes quickly, and who goes there without a coat will regret it before noon."
WARNED = {**RECEIPT, "warnings": ["interventions[0] moved no token by more than 0.01 x its residual norm."]}
VALIDATION = {"spec": "x", "warnings": ["interventions[0]: 3 x max_act is outside the zone."]}
REFUSED = {"error": {"message": "SAE 's' has no feature named 'se'.", "param": "x", "code": "y", "type": "z"}}
VARIANT: dict[str, Any] = {
    "id": "m:tired",
    "version": "m:tired@0",
    "name": "tired",
    "base": "m",
    "steering": {"interventions": [{"op": "clamp", "feature": "s/9", "value": 1.0}]},
    "meaning": "sha256:0",
    "sha256": "0",
    "created": 1,
}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    stop = scripted.run()
    yield scripted
    stop()


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path), "INPUTRC": "/dev/null"}


def answering(act: Act) -> Act:
    """Answer a question, or say what models there are: columns ask at once, so which comes first cannot be told."""

    def play(handler: Handler) -> None:
        (reply(MODELS) if handler.path == "/v1/models" else act)(handler)

    return play


SAYS = answering(stream([sse(chat_chunk(LONG)), sse({**chat_chunk(""), "steering": WARNED}), DONE]))


def questions(server: ScriptedServer) -> list[str]:
    return [seen.json["messages"][-1]["content"] for seen in server.seen if seen.path == "/v1/chat/completions"]


def test_ctrl_c_stops_an_answer_and_not_the_chat(server: ScriptedServer, home: dict[str, str]) -> None:
    for_ever = answering(stream_for_ever(sse(chat_chunk("on and "))))
    server.will(*[for_ever] * 3, *[SAYS] * 2)
    with typed("chat", "--clamp", "s/3=1", "--url", server.url, environment=home) as terminal:
        terminal.shows("> ")
        terminal.enter("Go on.")
        terminal.shows("on and on and")
        terminal.type(CTRL_C)
        at = terminal.shows("Stopped.")
        assert server.hung_up.wait(5)  # which ends the generation
        terminal.shows("> ", at)
        terminal.enter("How is the weather?")
        terminal.shows("mountains", at)
        at = terminal.shows("> ", terminal.shows("moved no", at))
        terminal.type("a line that is dropped")
        terminal.shows("dropped", at)
        time.sleep(0.2)  # Python loses a signal that comes after the prompt is drawn and before it waits for a key
        terminal.type(CTRL_C)
        at = terminal.shows("Ctrl-D or /quit ends.", at)
        terminal.shows("> ", at)
        terminal.type(CTRL_D)
        assert terminal.ends() == 0
    assert questions(server) == ["Go on."] * 2 + ["How is the weather?"] * 2
    said = server.seen[-1].json["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", "user"]
    assert said[1]["content"].startswith("on and on and")  # what was stopped stays as far as it came


def test_lines_are_edited_and_come_back_also_the_next_time(server: ScriptedServer, home: dict[str, str]) -> None:
    server.will(*[SAYS] * 5)
    with typed("chat", "--url", server.url, environment=home) as terminal:
        terminal.shows("> ")
        terminal.enter(f"Helo{LEFT}l")
        at = terminal.shows("> ", terminal.shows("noon."))
        terminal.enter(UP)
        at = terminal.shows("noon.", at)
        terminal.shows("> ", at)
        terminal.enter("/quit")
        assert terminal.ends() == 0
    with typed("chat", "--url", server.url, environment=home) as terminal:
        terminal.shows("> ")
        terminal.enter(UP + UP)
        terminal.shows("noon.")
    assert questions(server) == ["Hello"] * 3


def test_steering_changes_between_two_questions(server: ScriptedServer, home: dict[str, str]) -> None:
    server.will(reply(REFUSED, status=400), reply(VALIDATION), *[SAYS] * 3)
    server.will(reply(VARIANT), *[SAYS] * 2, reply(VARIANT), reply(VALIDATION))
    with typed("chat", "--url", server.url, environment=home) as terminal:
        at = terminal.shows("Nothing is steered yet")
        terminal.shows("> ", at)
        for line, says in (
            ("/clamp s/se 3", "has no feature named 'se'"),
            ("/clamp s/sea 3", "warning: interventions[0]: 3 x max_act is outside the zone."),
            ("/clamp s/sea high", "FEATURE=VALUE"),
            ("/clmap", "Did you mean '/clamp'?"),
            ("Hello", "warning:"),
            ("/variant tired", "Steered as m:tired."),
            ("Hello again", "warning:"),
            ("/save both", "any client can ask for the model m:tired"),
            ("/clamp s/sea off", "s/sea is let go."),
            ("/variant none", "No variant steers."),
            ("/clamp", "Nothing is steered yet"),
        ):
            terminal.enter(line)
            at = terminal.shows(says, at + len(line))
            at = terminal.shows("> ", at)
        terminal.type(CTRL_D)
        assert terminal.ends() == 0
    steered = [seen.json for seen in server.seen if seen.json and "messages" in seen.json and "steering" in seen.json]
    answered = [
        (body["model"], body["steering"]["interventions"][0]["feature"]) for body in steered if "stream" in body
    ]
    assert answered == [("base", "s/sea"), ("m:tired", "s/sea")]
    (saved,) = [seen.json for seen in server.seen if (seen.method, seen.path) == ("POST", "/v1/variants")]
    assert saved["name"] == "both"
    assert [move["feature"] for move in saved["steering"]["interventions"]] == ["s/sea", "s/9"]


@pytest.mark.parametrize("columns", [80, 50, 30])
def test_columns_fit_the_terminal(server: ScriptedServer, home: dict[str, str], columns: int) -> None:
    server.will(*[SAYS] * 4)
    words = ["chat", "--clamp", "s/3=1", "--prompted", "Be brief.", "--url", server.url]
    with typed(*words, columns=columns, rows=60, environment=home) as terminal:
        at = terminal.shows("> ")
        terminal.enter("Hi")
        at = terminal.shows("Hi", at)
        terminal.shows("> ", terminal.shows("residual", at))
        drawn = terminal.text[at:].splitlines()
    assert max(map(cell_width, drawn)) <= columns
    is_beside = any(len(line.split()) == 3 and line.split() == ["default", "steered", "prompted"] for line in drawn)
    assert is_beside == (columns == 80)


def test_where_lines_are_piped_a_refusal_ends_the_chat(server: ScriptedServer) -> None:
    server.will(reply(REFUSED, status=400))
    out, said = run("chat", "--url", server.url, said="/clamp s/se 3\nHello\n", status=1)
    assert (out, "has no feature named 'se'" in said) == ("", True)
    assert questions(server) == []


def test_a_clamp_is_added_to_the_rules_of_a_file(server: ScriptedServer, tmp_path: Path) -> None:
    rule = {"name": "stop", "when": {"feature": "s/1", "above": 0.5}, "then": "abort", "tokens": "generated"}
    (tmp_path / "steering.json").write_text(json.dumps({"rules": [rule], "receipt": "tokens"}))
    server.will(reply(VALIDATION))
    words = ["chat", "--steering", str(tmp_path / "steering.json"), "--url", server.url]
    _, said = run(*words, said="/clamp s/sea 3\n")
    sent = server.seen[-1].json["steering"]
    assert [one["name"] for one in sent["rules"]] == ["stop"]
    assert [one["feature"] for one in sent["interventions"]] == ["s/sea"]
    assert sent["receipt"] == "tokens"
    assert said == "warning: interventions[0]: 3 x max_act is outside the zone.\n"
