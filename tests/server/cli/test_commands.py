"""The commands that speak to a server, where nothing but the client is installed; the server says what it is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import without_extras
from tests.support.scripted_server import (
    DONE,
    MODELS,
    RECEIPT,
    Handler,
    ScriptedServer,
    chat_chunk,
    hang_up,
    reply,
    sse,
    stream,
)
from tests.support.typed_terminal import run

FEATURE = {"feature": "s/3", "sae": "s", "index": 3, "name": None, "description": 'active on " reef"'}
TOKEN = {"id": 1, "text": " sea", "logprob": -1.0}
TOGETHER = {"num_features": 1, "num_active": 1, "change": -0.5, "sum_of_changes": -0.5, "predicted": -0.4}
ANSWER = {"seed": 0, "text": "It rains.", "tokens": [], "kl": 0.3, "perplexity": 7.0, "repetition": 0.1}
SHA = "0" * 64
VARIANT: dict[str, Any] = {
    "id": "m:tired",
    "version": f"m:tired@{SHA[:12]}",
    "name": "tired",
    "base": "m",
    "steering": {"interventions": [{"op": "clamp", "feature": "s/3", "value": 1.0}]},
    "meaning": f"sha256:{SHA}",
    "sha256": SHA,
    "created": 1,
}
EXPORTED = {name: VARIANT[name] for name in ("name", "base", "steering", "meaning", "sha256", "created")}
EXPORT = {"object": "variant.export", "data": [EXPORTED, {**EXPORTED, "name": "awake", "sha256": "1" * 64}]}
VECTOR = {
    "name": "mood",
    "site": "resid_post 3",
    "layer": 3,
    "sign": 1,
    "source": "x",
    "norm": 2.0,
    "resid_norm": 0.1,
    "sha256": SHA,
}
PLANNED = {"feature": "s/3", "site": "resid_post 3", "op": "clamp", "value": 0.01, "unit": "max_act", "dose": 0.01}
VALIDATION = {"spec": "x", "interventions": [PLANNED], "doses": {"resid_post 3": 0.01}, "warnings": ["Too small."]}
WARNED = {**RECEIPT, "warnings": ["interventions[0] moved no token."]}
COMPARISON = {"default": [ANSWER], "steered": [ANSWER], "receipts": [WARNED]}
STEERED = stream([sse(chat_chunk("It pours.")), sse({**chat_chunk(""), "steering": WARNED}), DONE])


def models_or_answer(handler: Handler) -> None:
    """Columns ask at once: which request comes first cannot be told."""
    (reply(MODELS) if handler.path == "/v1/models" else STEERED)(handler)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    stop = scripted.run()
    yield scripted
    stop()


def asked(server: ScriptedServer, number: int = -1) -> Any:
    return server.seen[number].json


COMMANDS: list[Any] = [
    (["features", "search", "reef"], [{"data": [FEATURE], "num_found": 1}], 'active on " reef"'),
    (["features", "show", "s/3"], [FEATURE], 'about\tactive on " reef"'),
    (
        ["features", "inspect", "The reef."],
        [
            {
                "tokens": [],
                "features": [{**FEATURE, "max": 1.0, "mean": 1.0, "frequency": 1.0}],
                "aggregate": "max",
                "num_counted": 1,
            }
        ],
        's/3\t\tactive on " reef"',
    ),
    (
        ["features", "attribute", "The"],
        [
            {
                "target": TOKEN,
                "position": 1,
                "metric": "logprob",
                "value": -1.0,
                "data": [{**FEATURE, "act": 1.0, "position": 0, "change": -0.5, "predicted": -0.4}],
                "pairs": [],
                "together": {**TOGETHER, "share_explained": 0.9},
                "claim": "Causal.",
                "warnings": ["Another was meant."],
            }
        ],
        's/3\t\tactive on " reef"',
    ),
    (
        ["features", "neighbours", "s/1"],
        [{"data": [{"feature": "s/1", "neighbours": [{**FEATURE, "cosine": 0.5}]}]}],
        's/3\t\tactive on " reef"\t0.50',
    ),
    (["variants", "list"], [{"data": [VARIANT]}], "m:tired"),
    (["variants", "show", "tired"], [VARIANT], f"m:tired@{SHA[:12]}"),
    (["variants", "create", "tired", "--clamp", "s/3=1"], [VARIANT, VALIDATION], "m:tired"),
    (
        ["variants", "delete", "tired", "--yes"],
        [VARIANT, {"id": "m:tired", "deleted": True, "num_versions": 2}],
        "m:tired is deleted, with 2 versions.",
    ),
    (["variants", "export"], [EXPORT], '"name": "awake"'),
    (["vectors", "list"], [{"data": [VECTOR], "sites": ["resid_post 3"], "max_vectors": 9}], "mood\tresid_post 3\t+1"),
    (["vectors", "get", "mood"], [VECTOR], "site\tresid_post 3"),
    (
        ["vectors", "delete", "mood", "-y"],
        [VECTOR, {"object": "vector", "name": "mood", "deleted": True}],
        "mood is deleted.",
    ),
    (["validate", "--clamp", "s/3=0.01"], [VALIDATION], "0.01 max_act"),
    (["compare", "Hello", "--clamp", "s/3=1"], [COMPARISON], "steered\t0\t0.3\t7\t0.1\tIt rains."),
]


@pytest.mark.parametrize(("words", "answers", "shows"), COMMANDS, ids=[" ".join(words[:2]) for words, _, _ in COMMANDS])
def test_every_command_that_speaks_to_a_server_needs_no_more_than_the_client(
    server: ScriptedServer, words: list[str], answers: list[Any], shows: str
) -> None:
    server.will(*map(reply, answers))
    out, _ = run(*words, "--url", server.url)
    assert shows in out


@pytest.mark.parametrize("words", [["sae", "list"], ["calibrate", "x", "--features", "3"], ["harvest", "--help"]])
def test_the_other_commands_say_what_to_install(words: list[str]) -> None:
    if "--help" in words:
        assert "usage: " in run(*words)[0]
        return
    _, said = run(*words, status=1)
    assert f"`saeclamp {words[0]}` needs torch, safetensors, numpy" in said
    assert "pip install '.[saes]'" in said
    assert len(said.splitlines()) == 1


def test_serve_says_what_to_install() -> None:
    _, said = run("serve", "some/model", "--sae", "x", status=1)
    assert said.startswith(
        "saeclamp: `saeclamp serve` needs torch, safetensors, transformers, vllm, not installed here"
    )
    assert ("make serve" in said, len(said.splitlines())) == (True, 1)


@pytest.mark.parametrize("form", ["{host}:{port}", "{port}", "http://{host}:{port}/v1/", "{host}:{port}/v1"])
def test_an_address_that_can_mean_one_thing_only_is_understood(server: ScriptedServer, form: str) -> None:
    server.will(reply({"data": [VARIANT]}))
    host, _, port = server.url.removeprefix("http://").partition(":")
    assert "m:tired" in run("variants", "list", "--url", form.format(host=host, port=port))[0]
    assert server.paths() == ["/v1/variants"]


@pytest.mark.parametrize("url", ["http://[::1", "host:port", "99999", "ftp://host", ""])
def test_what_is_no_address_is_said_in_a_sentence(url: str) -> None:
    _, said = run("variants", "list", "--url", url, status=1)
    assert said.startswith("saeclamp: ")
    assert "no address such as" in said


def test_a_path_that_nothing_is_at_is_told_apart_from_a_thing_that_is_not_there(server: ScriptedServer) -> None:
    server.will(reply({"error": {"message": "Not Found", "code": "not_found"}}, status=404))
    _, said = run("variants", "list", "--url", f"{server.url}/proxy", status=1)
    assert f"Nothing at {server.url}/proxy knows of this: is it a saeclamp server, and is that all" in said
    server.will(reply({"error": {"message": "There is no variant 'x'.", "param": "name", "code": "y"}}, status=404))
    _, said = run("variants", "show", "x", "--url", server.url, status=1)
    assert said == "saeclamp: HTTP 404: There is no variant 'x'. (param name)\n"


def test_an_answer_that_breaks_off_is_told_apart_from_a_server_that_is_not_there(server: ScriptedServer) -> None:
    server.will(stream([b"data: {"], cut=True))
    _, said = run("compare", "Hi", "--clamp", "s/3=1", "--url", server.url, status=1)
    assert said.startswith(f"saeclamp: The connection to {server.url} was lost while the server was answering; ")
    server.will(*[hang_up] * 3)
    _, said = run("variants", "list", "--url", server.url, status=1)
    assert said.startswith(f"saeclamp: What listens at {server.url} gave no answer: ")
    _, said = run("variants", "list", "--url", "127.0.0.1:9", status=1)
    assert said.startswith("saeclamp: No server answers at 127.0.0.1:9; start one with `saeclamp serve`. ")


def test_a_variant_that_is_created_again_is_said_to_exist(server: ScriptedServer) -> None:
    for is_new, says in ((True, f"Saved: m:tired means m:tired@{SHA[:12]}.\n"), (False, "exists already, unchanged;")):
        server.will(reply({**VARIANT, "is_new": is_new}), reply({**VALIDATION, "warnings": []}))
        out, said = run("variants", "create", "tired", "--clamp", "s/3=1", "--url", server.url)
        assert (out.splitlines()[0], says in said, len(said.splitlines())) == ("model\tm:tired", True, 1)


def test_a_dose_is_written_alike_in_a_table_and_in_a_sum(server: ScriptedServer) -> None:
    planned = {**PLANNED, "value": 30.0, "dose": 15.452}
    server.will(reply({**VALIDATION, "interventions": [planned], "doses": {"resid_post 3": 15.452}}))
    out, _ = run("validate", "--clamp", "s/3=30", "--url", server.url)
    assert ("\t15.5\t" in out, "dose up to 15.5\n" in out) == (True, True)


def test_a_server_that_wants_a_key_is_told_apart_from_one_that_is_not_there(server: ScriptedServer) -> None:
    server.will(reply({"error": "Unauthorized"}, status=401), reply({"data": []}), reply({"data": []}))
    _, said = run("variants", "list", "--url", server.url, status=1)
    assert "wants its API key: give --api-key KEY, or set SAECLAMP_API_KEY" in said
    run("variants", "list", "--url", server.url, "--api-key", "one")
    run("variants", "list", "--url", server.url, SAECLAMP_API_KEY="two")
    assert [seen.headers.get("authorization") for seen in server.seen] == [None, "Bearer one", "Bearer two"]


def test_a_key_that_is_not_the_servers_is_told_apart_from_none(server: ScriptedServer) -> None:
    server.will(*[reply({"error": "Unauthorized"}, status=401)] * 2)
    for given, variables in ((["--api-key", "one"], {}), ([], {"SAECLAMP_API_KEY": "two"})):
        _, said = run("variants", "list", "--url", server.url, *given, status=1, **variables)
        assert "wants another API key than it was given: give --api-key KEY, or set SAECLAMP_API_KEY." in said


def test_what_is_deleted_is_asked_for_and_where_nobody_can_answer_stays(server: ScriptedServer) -> None:
    for kind, name, there in (("variants", "tired", VARIANT), ("vectors", "mood", VECTOR)):
        server.will(reply(there))
        _, said = run(kind, "delete", name, "--url", server.url, status=1)
        assert "There is nobody to ask: say --yes." in said
    assert {seen.method for seen in server.seen} == {"GET"}


def test_variants_are_exported_one_by_one_and_imported_from_the_standard_input(server: ScriptedServer) -> None:
    server.will(*[reply(EXPORT)] * 3, reply({"num_new": 1, "num_known": 0}))
    out, _ = run("variants", "export", "tired", "--url", server.url)
    assert [one["name"] for one in json.loads(out)["data"]] == ["tired"]
    both, _ = run("variants", "export", "awake@111", "m:tired", "--url", server.url)
    assert [one["name"] for one in json.loads(both)["data"]] == ["tired", "awake"]
    _, said = run("variants", "export", "tried", "--url", server.url, status=1)
    assert "Nobody has created a variant 'tried'. Created: tired, awake." in said
    assert run("variants", "import", "-", "--url", server.url, said=out)[0] == "1 new, 0 known.\n"
    assert [one["name"] for one in asked(server)["data"]] == ["tired"]


@pytest.mark.parametrize("where", ["file", "-"])
def test_a_vector_is_uploaded_as_it_is(server: ScriptedServer, tmp_path: Path, where: str) -> None:
    (tmp_path / "mood.safetensors").write_bytes(b"\x00\xffnumbers")
    server.will(reply(VECTOR))
    file = str(tmp_path / "mood.safetensors") if where == "file" else "-"
    command = [sys.executable, without_extras.__file__, "vectors", "upload", "mood", file, "--url", server.url]
    subprocess.run(command, input=b"\x00\xffnumbers", check=True, capture_output=True, timeout=60)
    assert (server.seen[0].path, server.seen[0].content) == ("/v1/vectors?name=mood", b"\x00\xffnumbers")


TOLD = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("how", ["options", "file", "stdin"])
def test_conversations_are_given_in_order_or_as_json(server: ScriptedServer, tmp_path: Path, how: str) -> None:
    (tmp_path / "said.json").write_text(json.dumps({"messages": TOLD}))
    words = {
        "options": ["--system", "Be brief.", "--user", "Hi"],
        "file": ["--messages", str(tmp_path / "said.json")],
        "stdin": ["--messages", "-"],
    }[how]
    server.will(reply(COMPARISON), reply(VALIDATION))
    for command in ("compare", "validate"):
        run(command, *words, "--clamp", "s/3=1", "--url", server.url, said=json.dumps(TOLD))
        assert asked(server)["messages"] == TOLD


def test_sets_of_conversations_are_contrasted(server: ScriptedServer, tmp_path: Path) -> None:
    lines = [json.dumps(TOLD), json.dumps({"messages": TOLD}), json.dumps("A text."), json.dumps({"text": "Another."})]
    (tmp_path / "one.jsonl").write_text("\n".join(lines))
    server.will(reply({"data": [], "num_features": 0, "num_significant": 0, "test": "t", "warnings": ["Too few."]}))
    _, said = run("features", "contrast", str(tmp_path / "one.jsonl"), "-", "--url", server.url, said="It rains.\n\n")
    assert asked(server)["positive"] == [TOLD, TOLD, "A text.", "Another."]
    assert asked(server)["negative"] == ["It rains."]
    assert said == "warning: Too few.\n"


WRONG: list[tuple[list[str], str]] = [
    (["compare", "--clamp", "s/3=1"], "Give one text, or a conversation"),
    (["compare", "Hi", "--user", "Hi", "--clamp", "s/3=1"], "Give one text, or a conversation"),
    (["compare", "Hi"], "Say how it is to be steered"),
    (["validate", "--user", "x", "--messages", "y", "--clamp", "s/3=1"], "not both"),
    (["features", "inspect", "--messages", "no/such/file"], "no/such/file cannot be read"),
    (["features", "inspect", "--messages", "-"], "The standard input cannot be read as JSON"),
    (["variants", "import", "-"], "The standard input cannot be read as JSON"),
    (["validate", "--steering", "-"], "The standard input cannot be read as JSON"),
]


@pytest.mark.parametrize(("words", "says"), WRONG)
def test_what_is_wrong_is_said_before_a_server_is_asked(words: list[str], says: str) -> None:
    _, said = run(*words, "--url", "127.0.0.1:9", said="{", status=1)
    assert said.startswith("saeclamp: ")
    assert says in said


def test_warnings_go_beside_the_output(server: ScriptedServer) -> None:
    server.will(reply(VALIDATION), reply(COMPARISON), reply(VARIANT), reply(VALIDATION))
    for words in (["validate"], ["compare", "Hi"], ["variants", "create", "x"]):
        out, said = run(*words, "--clamp", "s/3=0.01", "--url", server.url)
        assert ("warning: " in said, "warning" in out) == (True, False)


def test_a_variant_and_a_clamp_together_are_sent_as_any_client_would(server: ScriptedServer) -> None:
    server.will(reply(VARIANT), *[reply(VALIDATION)] * 2, *[models_or_answer] * 3)
    words = ["chat", "--variant", "tired", "--clamp", "s/4=0.5", "--url", server.url]
    out, said = run(*words, said="Hello\n")
    by_model = {seen.json["model"]: seen.json for seen in server.seen if seen.json and "model" in seen.json}
    assert [(move["feature"], move["value"]) for move in by_model["m:tired"]["steering"]["interventions"]] == [
        ("s/4", 0.5)
    ]
    assert "steering" not in by_model["base"]
    assert sorted(line.partition(": ")[0] for line in out.splitlines()) == ["default", "m:tired, steered"]
    assert "warning: interventions[0] moved no token.\n" in said
