"""A chat in a terminal: an answer can be stopped, a line edited, and the steering changed between two questions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.scripted_server import (
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
from tests.support.typed_terminal import CTRL_C, CTRL_D, LEFT, UP, run, typed

from saeclamp_server.cli.tables import cell_width

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
    server.will(reply(VALIDATION), *[for_ever] * 3, *[SAYS] * 2)
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
    server.will(reply(VARIANT), *[reply(VALIDATION)] * 2, *[SAYS] * 2, reply(VARIANT))
    with typed("chat", "--url", server.url, environment=home) as terminal:
        at = terminal.shows("Nothing is steered yet")
        terminal.shows("> ", at)
        for line, says in (
            ("/clamp s/se 3", "has no feature named 'se'"),
            ("/clamp s/sea 3", "warning: interventions[0]: 3 x max_act is outside the zone."),
            ("/clamp s/sea high", "FEATURE=VALUE"),
            ("/clmap", "Did you mean '/clamp'?"),
            ("/clamp s/sea", "It is /clamp FEATURE VALUE or /clamp, not '/clamp s/sea'."),
            ("/clamp", "Steered by clamp s/sea 3 max_act."),
            ("Hello", "warning:"),
            ("/variant tired", "Steered as m:tired."),
            ("Hello again", "warning:"),
            ("/clamp", "Steered as m:tired is, by clamp s/9 1 max_act."),
            ("/save both", "Any client can ask for it as a model."),
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
    server.will(reply(VALIDATION), *[SAYS] * 4)
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


def test_where_lines_are_piped_every_command_says_in_a_line_what_became_of_it(server: ScriptedServer) -> None:
    server.will(reply(REFUSED, status=400), reply(VALIDATION), *[SAYS] * 3)
    server.will(reply({**VARIANT, "is_new": True}), reply({**VARIANT, "is_new": False}))
    lines = [
        "/clamp s/se 3",
        "/clamp s/sea 3",
        "",
        "Hello",
        "/clmap",
        "/clamp s/sea high",
        "/save both",
        "/save both",
        "/clamp",
        "/reset",
        "/variant none",
        "/quit",
        "Never asked",
    ]
    out, said = run("chat", "--url", server.url, said="\n".join(lines), status=1)
    assert [line.partition(": ")[0] for line in out.splitlines()] == ["default", "steered"]
    assert [line for line in said.splitlines() if not line.startswith("warning: ")] == [
        "Nothing is steered yet: /clamp FEATURE VALUE or /variant NAME does.",
        "saeclamp: line 1: HTTP 400: SAE 's' has no feature named 'se'. (param x)",
        "s/sea is clamped to 3 max_act.",
        "saeclamp: line 5: There is no /clmap. Did you mean '/clamp'? /help lists commands.",
        "saeclamp: line 6: 's/sea=high' is no FEATURE=VALUE, such as bundled/sea=1 or bundled/54=30act.",
        "Saved: m:tired means m:tired@0. Any client can ask for it as a model.",
        "m:tired@0 exists already, unchanged; m:tired means it. Any client can ask for it as a model.",
        "Steered by clamp s/sea 3 max_act.",
        "What was said is forgotten; what steers stays.",
        "No variant steers.",
    ]
    assert questions(server) == ["Hello"] * 2


def test_where_lines_are_piped_the_status_is_0_as_long_as_none_is_wrong(server: ScriptedServer) -> None:
    server.will(*[SAYS] * 2)
    out, _ = run("chat", "--url", server.url, said="Hello\n/reset\n")
    assert out == f"default: {LONG}\n"


def test_where_lines_are_piped_an_answer_that_breaks_off_does_not_end_the_chat(server: ScriptedServer) -> None:
    server.will(reply(MODELS), stream([sse(chat_chunk("It"))], cut=True), SAYS)
    out, said = run("chat", "--url", server.url, said="Hello\nAnd now?\n", status=1)
    assert out == f"default: {LONG}\n"
    assert f"saeclamp: line 1: The connection to {server.url} was lost while the server was answering" in said
    assert [message["content"] for message in server.seen[-1].json["messages"]] == ["Hello", "It", "And now?"]


def test_what_a_variant_contradicts_is_said_before_the_first_question(server: ScriptedServer) -> None:
    both = {"error": {"message": "interventions[0] already moves s/9 at these tokens.", "param": "x", "code": "y"}}
    server.will(reply(VARIANT), reply(VALIDATION), reply(both, status=400))
    words = ["chat", "--variant", "tired", "--clamp", "s/9=2", "--url", server.url]
    out, said = run(*words, said="Hello\n", status=1)
    assert (out, questions(server)) == ("", [])
    assert said == (
        "saeclamp: The variant m:tired cannot be used beside clamp s/9 2 max_act: interventions[0] already moves s/9 at "
        "these tokens. Leave one of both out.\n"
    )


def test_a_variant_that_contradicts_a_clamp_leaves_the_steering_as_it_was(server: ScriptedServer) -> None:
    server.will(reply(VALIDATION), reply(VARIANT), reply(VALIDATION), reply(REFUSED, status=400))
    words = ["chat", "--clamp", "s/9=2", "--url", server.url]
    _, said = run(*words, said="/variant tired\n/clamp\n", status=1)
    first, second = said.splitlines()
    assert "The variant m:tired cannot be used beside clamp s/9 2 max_act: " in first
    assert second == "Steered by clamp s/9 2 max_act."


def test_what_is_wrong_with_a_flag_is_said_before_the_first_question(server: ScriptedServer) -> None:
    server.will(reply(REFUSED, status=400))
    out, said = run("chat", "--clamp", "s/se=1", "--url", server.url, said="Hello\nHello\n", status=1)
    assert (out, said.count("has no feature named 'se'")) == ("", 1)


def test_a_clamp_is_added_to_the_rules_of_a_file(server: ScriptedServer, tmp_path: Path) -> None:
    rule = {"name": "stop", "when": {"feature": "s/1", "above": 0.5}, "then": "abort", "tokens": "generated"}
    (tmp_path / "steering.json").write_text(json.dumps({"rules": [rule], "receipt": "tokens"}))
    server.will(*[reply(VALIDATION)] * 2)
    words = ["chat", "--steering", str(tmp_path / "steering.json"), "--url", server.url]
    _, said = run(*words, said="/clamp s/sea 3\n")
    sent = server.seen[-1].json["steering"]
    assert [one["name"] for one in sent["rules"]] == ["stop"]
    assert [one["feature"] for one in sent["interventions"]] == ["s/sea"]
    assert sent["receipt"] == "tokens"
    assert said == ("s/sea is clamped to 3 max_act.\nwarning: interventions[0]: 3 x max_act is outside the zone.\n")
