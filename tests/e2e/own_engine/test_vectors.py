"""Uploaded vectors on a tiny model, under everything vLLM does to a batch, against the oracle; and across restarts."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.oracles.reference import Compared, Move, ReferenceModel, When
from tests.support.agreement import (
    assert_agreement,
    assert_choice_agrees,
    max_difference,
    on_the_wire,
    rules_on_the_wire,
)
from tests.support.checkpoints import SPECIAL_IDS, make_model
from tests.support.differential import BASE, FLAGS, TOLERANCE
from tests.support.random_vectors import Made, draw, upload
from tests.support.serving import Server, serve
from tests.support.streaming import chunks
from tests.support.tiny_engine import tiny_engine
from torch import Tensor
from transformers import AutoTokenizer

CAPACITY = 4
PROMPT = BASE[:45]
PARAMS: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True, "logprobs": 0, "return_token_ids": True}


VECTORS = {
    "plus": Made(draw(1), 0),
    "minus": Made(draw(2, 7.5).to(torch.bfloat16), 3, sign=-1),
    "own-site": Made(draw(3, 0.2), 1),
    "mid": Made(draw(4, 3.0), 2, "resid_mid", sign=-1),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[tuple[Server, ReferenceModel]]:
    folder = tmp_path_factory.mktemp("tiny")
    flags = ["--vector-site", "resid_post.1", "--vector-site", "resid_mid.2", "--max-vectors", str(CAPACITY)]
    flags += ["--enable-prompt-tokens-details"]
    with tiny_engine(folder, model_folder, "llama", *FLAGS, *flags) as (server, oracle):
        for name, made in VECTORS.items():
            response = upload(server, name, made.file())
            assert response.status_code == 201, response.text
            oracle.saes[f"vector:{name}"] = made.reference()
        yield server, oracle


@pytest.mark.parametrize(
    "moves",
    [
        [Move("vector:plus", 0, "add", 9.0)],
        [Move("vector:minus", 0, "add", 2.5)],
        [Move("vector:minus", 0, "add", -2.5, "generated")],
        [Move("vector:plus", 0, "clamp", -8.0, "prompt")],
        [Move("vector:own-site", 0, "clamp", 60.0, {"after": 20})],
        [Move("vector:plus", 0, "scale", -4.0)],
        [Move("vector:mid", 0, "at_least", 1.5, special=True)],
        [Move("vector:minus", 0, "at_most", -1.0)],
        [Move("vector:minus", 0, "scale", 6.0), Move("vector:plus", 0, "ablate")],
        [
            Move("vector:plus", 0, "clamp", 6.0),
            Move("low", 3, "clamp", 9.0),
            Move("low", 40, "add", -4.0, "generated"),
            Move("vector:minus", 0, "clamp", 1.0, "prompt"),
            Move("vector:minus", 0, "ablate", tokens="generated"),
            Move("high", 3, "clamp", -6.0),
            Move("other", 3, "add", 5.0),
            Move("vector:mid", 0, "add", 1.0),
        ],
    ],
    ids=lambda moves: "+".join(f"{move.op} {move.sae}" for move in moves[:3]),
)
def test_moving_vectors_and_features_is_what_the_oracle_does(
    engine: tuple[Server, ReferenceModel], moves: list[Move]
) -> None:
    server, oracle = engine
    assert_agreement(server, oracle, PROMPT, moves)


def test_a_probe_is_read_and_its_note_changes_nothing(engine: tuple[Server, ReferenceModel]) -> None:
    """Its score is the dot product with the signed vector, plus the bias; aggregates look back over all chunks."""
    server, oracle = engine
    made, bias = VECTORS["minus"], -2.25
    name = "vector:minus"
    assert upload(server, "probe", made.file(bias=str(bias))).json()["bias"] == bias
    prompt, square = PROMPT, float(made.numbers.double().square().sum())
    acts = oracle.forward(prompt, len(prompt), [], reads=[name]).acts[name][:, 0].double()
    scores = (acts * square + bias).tolist()
    ordinary = [at for at, token in enumerate(prompt) if at > 0 and token not in SPECIAL_IDS]
    means = [sum(scores[at] for at in ordinary[: nth + 1]) / (nth + 1) for nth in range(len(ordinary))]
    middle = sorted(means)[len(means) // 2]
    largest = sorted(scores[at] for at in ordinary)[-2]
    when = [
        {"vector": "probe", "above": largest - 0.01},
        {"vector": "probe", "above": middle, "over": "mean"},
        {
            "any": [
                {"vector": "probe", "above": largest - 0.01, "over": "max"},
                {"feature": "low/3", "above": 1e6, "unit": "act"},
            ]
        },
    ]
    rules = [{"name": f"n{n}", "when": one, "then": "note", "tokens": "prompt"} for n, one in enumerate(when)]
    readout = {"vectors": ["probe"], "features": ["low/3"], "tokens": "prompt"}
    before = _firings(server)
    answer = server.post(
        "/v1/completions", prompt=prompt, temperature=0, steering={"rules": rules, "readout": readout}, **PARAMS
    ).json()
    (choice,) = answer["choices"]
    assert_choice_agrees(choice, oracle, prompt, [], TOLERANCE)
    shown = choice["steering"]["prompt_tokens"]
    assert [at for at, token in enumerate(shown) if token is not None] == ordinary
    read = [shown[at]["vectors"]["probe"] for at in ordinary]
    assert max_difference(read, [scores[at] for at in ordinary]) < 1e-3
    fired = {item["rule"]: item for item in answer["steering"]["fired"]}
    held = [at for at in ordinary if scores[at] > largest - 0.01]
    assert (fired["n0"]["token"], fired["n0"]["num_tokens"]) == (held[0], 2)
    assert fired["n0"]["value"] == pytest.approx(scores[held[0]], abs=1e-3)
    assert fired["n0"]["acts"] == {"probe": fired["n0"]["value"]}
    over = [at for at, mean in zip(ordinary, means, strict=True) if mean > middle + 1e-4]
    close = sum(abs(mean - middle) <= 1e-4 for mean in means)
    assert len(over) <= fired["n1"]["num_tokens"] <= len(over) + close
    # from where it first held on, the maximum stays above
    assert fired["n2"]["token"] == held[0]
    assert fired["n2"]["num_tokens"] == sum(at >= held[0] for at in ordinary)
    assert _firings(server) == before + 3
    server.http.delete("/v1/vectors/probe")


def _firings(server: Server) -> float:
    line = 'saeclamp_rule_firings_total{then="note"} '
    found = [text for text in server.http.get("/metrics").text.splitlines() if text.startswith(line)]
    return float(found[0].removeprefix(line)) if found else 0.0


def test_rules_on_vectors_move_and_abort_as_the_oracle_says(engine: tuple[Server, ReferenceModel]) -> None:
    server, oracle = engine
    acts = oracle.forward(PROMPT, len(PROMPT), [], reads=["vector:plus"]).acts["vector:plus"][1:, 0]
    bound = float(acts.median()) + 1e-3
    rules = [
        When(Compared("vector:plus", 0, bound), (Move("high", 3, "add", 6.0),)),
        When(Compared("vector:plus", 0, bound, over=5), (Move("vector:minus", 0, "add", 1.5),)),
    ]
    steering = {"rules": rules_on_the_wire(rules), "receipt": "summary"}
    body = {"prompt": PROMPT, "temperature": 0, "prompt_logprobs": 0, "steering": steering, **PARAMS}
    answer = server.post("/v1/completions", **body).json()
    (choice,) = answer["choices"]
    assert_choice_agrees(choice, oracle, PROMPT, [], TOLERANCE, rules)
    ids = [*PROMPT, *choice["token_ids"][:-1]]
    held = oracle.forward(ids, len(PROMPT), [], rules).held
    assert [(one["token"], one["num_tokens"]) for one in answer["steering"]["fired"]] == [
        (at[0], len(at)) for at in held
    ]
    abort = {"rules": rules_on_the_wire([When(Compared("vector:plus", 0, bound))])}
    response = server.post("/v1/completions", prompt=PROMPT, temperature=0, steering=abort, **PARAMS).json()
    assert response["choices"][0]["finish_reason"] == "content_filter"


def test_a_condition_on_a_vector_that_is_not_there_is_refused(engine: tuple[Server, ReferenceModel]) -> None:
    server, _ = engine
    rule = {"name": "r", "when": {"not": {"vector": "plsu", "above": 1}}, "then": "note"}
    for steering, param in (
        ({"rules": [rule]}, "steering.rules[0].when.not.vector"),
        ({"readout": {"vectors": ["plus", "plsu"]}}, "steering.readout.vectors[1]"),
    ):
        response = server.post("/v1/completions", prompt=PROMPT, steering=steering)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
        assert "Did you mean 'plus'?" in response.json()["error"]["message"]


def test_an_ablated_vector_is_gone_from_the_stream(engine: tuple[Server, ReferenceModel]) -> None:
    server, oracle = engine
    answer = server.complete(PROMPT, on_the_wire([Move("vector:plus", 0, "ablate")]), **PARAMS, prompt_logprobs=0)
    assert_choice_agrees(answer["choices"][0], oracle, PROMPT, [Move("vector:plus", 0, "ablate")], TOLERANCE)
    acts = oracle.forward(PROMPT, len(PROMPT), [], reads=["vector:plus"]).acts["vector:plus"][1:, 0]
    (item,) = answer["steering"]["interventions"]
    assert acts.min() < 0 < acts.max()
    assert item["act_before"]["max"] >= float(acts.max()) - 1e-3


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_a_vector_is_derived_from_the_texts_own_tokens_while_others_are_steered(
    engine: tuple[Server, ReferenceModel], model_folder: Path, tmp_path: Path, tokens: str
) -> None:
    server, oracle = engine
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    sets = {  # one text of each is prefilled in chunks
        side: [f"{word} {number}" + " and on and on" * 25 * (number == 2) for number in range(5)]
        for side, word in (("positive", "We laughed and danced all day"), ("negative", "The tax form is due"))
    }

    def read(text: str) -> Tensor:
        ids = tokenizer(text)["input_ids"]
        stream = oracle.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0].detach()
        ordinary = [n for n, token in enumerate(ids) if n > 0 and token not in SPECIAL_IDS]
        return stream[-1] if tokens == "last" else stream[ordinary].mean(dim=0)

    positive, negative = (sum(map(read, texts)) / len(texts) for texts in sets.values())
    push = on_the_wire([Move("vector:own-site", 0, "add", 40.0)])
    body = {"name": f"joy-{tokens}", "site": "resid_post.1", "tokens": tokens} | sets
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(server.complete, PROMPT, push, max_tokens=40) for _ in range(6)]
        response = server.http.post("/v1/vectors/derive", json=body)
        assert all(other.result()["steering"]["applied"] for other in others)
    assert response.status_code == 200, response.text
    expected, made = positive - negative, response.json()["vector"]
    assert (made["site"], made["norm"]) == ("resid_post 1", pytest.approx(float(expected.norm()), rel=1e-4))
    oracle.saes[f"vector:joy-{tokens}"] = Made(expected, 1).reference()
    assert_agreement(server, oracle, PROMPT, [Move(f"vector:joy-{tokens}", 0, "add", 1.0)])
    assert server.http.delete(f"/v1/vectors/joy-{tokens}").status_code == 200


def test_the_receipt_says_what_was_moved(engine: tuple[Server, ReferenceModel]) -> None:
    server, oracle = engine
    known = server.http.get("/v1/vectors/minus").json()
    assert (known["site"], known["layer"], known["sign"], known["source"]) == ("resid_post 3", 3, -1, "a random draw")
    assert known["norm"] == pytest.approx(float(VECTORS["minus"].numbers.double().norm()))
    move = {"op": "add", "vector": "minus", "value": 0.5, "unit": "resid_norm"}
    answer = server.complete(PROMPT, [move], **PARAMS, prompt_logprobs=0)
    receipt = answer["steering"]
    (item,) = receipt["interventions"]
    assert receipt["sae"] == {"vector:minus": known["sha256"]}
    assert (item["vector"], item["feature"], item["sae"], item["index"]) == ("minus", None, None, None)
    assert (item["layer"], item["site"], item["op"], item["value"], item["unit"]) == (
        *(3, "resid_post 3", "add", 0.5, "resid_norm"),
    )
    assert item["value_act"] == pytest.approx(0.5 / known["resid_norm"], rel=2e-4)  # of lengths in four digits
    assert item["tokens"] == {"prompt": len(PROMPT) - 1, "generated": 11, "sinks": 0}
    assert 0.2 < item["dose"]["mean"] < 1.0
    moves = [Move("vector:minus", 0, "add", item["value_act"])]
    assert_choice_agrees(answer["choices"][0], oracle, PROMPT, moves, TOLERANCE)
    ids = [*PROMPT, *answer["choices"][0]["token_ids"][:-1]]
    acts = oracle.forward(ids, len(PROMPT), moves, reads=["vector:minus"]).acts["vector:minus"][1:, 0]
    assert item["act_before"]["mean"] == pytest.approx(float(acts.mean()), abs=1e-4)
    assert item["act_before"]["max"] == pytest.approx(float(acts.max()), abs=1e-4)


def test_activations_that_are_all_negative_have_a_negative_maximum(engine: tuple[Server, ReferenceModel]) -> None:
    server, oracle = engine
    acts = oracle.forward(PROMPT, len(PROMPT), [], reads=["vector:plus"]).acts["vector:plus"][:, 0]
    lowest = [int(at) for at in acts.argsort()[:3] if at > 0]
    assert acts[lowest].max() < 0
    move = on_the_wire([Move("vector:plus", 0, "add", 0.5, {"positions": lowest})])
    (item,) = server.complete([*PROMPT, 777], move, max_tokens=1)["steering"]["interventions"]
    assert item["act_before"]["max"] == pytest.approx(float(acts[lowest].max()), abs=1e-4)


def test_a_stream_is_steered_alike(engine: tuple[Server, ReferenceModel]) -> None:
    server, _ = engine
    steering = {"interventions": on_the_wire([Move("vector:plus", 0, "add", 9.0)])}
    whole = server.post("/v1/completions", prompt=PROMPT, temperature=0, steering=steering, **PARAMS).json()
    streamed = chunks(
        server.post("/v1/completions", prompt=PROMPT, temperature=0, steering=steering, stream=True, **PARAMS)
    )
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == whole["choices"][0]["text"]
    assert streamed[-1]["steering"]["interventions"][0]["vector"] == "plus"
    assert streamed[-1]["steering"]["spec"] == whole["steering"]["spec"]


def test_requests_of_one_batch_have_their_own_vectors(engine: tuple[Server, ReferenceModel]) -> None:
    server, oracle = engine
    asked: list[list[Move]] = [
        [],
        [Move("vector:plus", 0, "add", 7.0)],
        [Move("vector:plus", 0, "clamp", -5.0)],
        [Move("vector:minus", 0, "clamp", 2.0), Move("vector:mid", 0, "ablate")],
        [Move("vector:own-site", 0, "add", 40.0)],
        [Move("low", 3, "clamp", 9.0)],
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda moves: server.complete(PROMPT[:30], on_the_wire(moves), **PARAMS), asked * 2))
    for moves, answer in zip(asked * 2, answers, strict=True):
        assert_choice_agrees(answer["choices"][0] | {"prompt_logprobs": None}, oracle, PROMPT[:30], moves, TOLERANCE)


def test_a_steered_prompt_is_cached_for_its_own_vector_alone(engine: tuple[Server, ReferenceModel]) -> None:
    server, _ = engine
    prompt = [*(200 + 7 * number for number in range(80))]
    moves = on_the_wire([Move("vector:plus", 0, "add", 9.0)])
    other = on_the_wire([Move("vector:minus", 0, "add", 9.0)])

    def cached(answer: dict[str, Any]) -> int:
        return (answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0

    steered, plain = (server.complete(prompt, asked, **PARAMS) for asked in (moves, ()))
    again, otherwise, plain_again = (server.complete(prompt, asked, **PARAMS) for asked in (moves, other, ()))
    assert [cached(answer) for answer in (steered, plain, again, otherwise, plain_again)] == [0, 0, 64, 0, 64]
    for one, two in ((steered, again), (plain, plain_again)):
        assert one["choices"][0]["text"] == two["choices"][0]["text"]
    logprobs = [answer["choices"][0]["logprobs"]["token_logprobs"] for answer in (steered, plain)]
    assert max_difference(*logprobs) > 0.02


def test_a_rule_moves_a_vector_where_it_holds(engine: tuple[Server, ReferenceModel]) -> None:
    server, oracle = engine
    rule = When(Compared("low", 5, 0.2), (Move("vector:minus", 0, "add", 3.0),), lasting=True)
    wire = {
        "name": "push",
        "when": {"feature": "low/5", "above": 0.2, "unit": "act"},
        "scope": "rest_of_request",
        "then": on_the_wire(rule.then),
    }
    body = {"prompt": PROMPT, "temperature": 0, "steering": {"rules": [wire]}, **PARAMS}
    answer = server.post("/v1/completions", **body).json()
    choice = answer["choices"][0] | {"prompt_logprobs": None}
    assert_choice_agrees(choice, oracle, PROMPT, [], TOLERANCE, [rule])
    assert answer["steering"]["fired"]
    early = wire | {
        "when": {"feature": "high/5", "above": 0.2, "unit": "act"},
        "then": on_the_wire([Move("vector:plus", 0, "ablate")]),
    }
    refused = server.post("/v1/completions", prompt=PROMPT, steering={"rules": [early]})
    assert refused.json()["error"]["param"] == "steering.rules[0].then[0].vector"


def test_readouts_show_saes_and_no_vectors(engine: tuple[Server, ReferenceModel]) -> None:
    server, _ = engine
    answer = server.post("/v1/completions", prompt=PROMPT, max_tokens=2, steering={"readout": {"top_k": 2}}).json()
    shown = [token["top"].keys() for token in answer["choices"][0]["steering"]["tokens"] if token]
    assert shown
    assert all(saes == {"low", "high", "other"} for saes in shown)


def refused(server: Server, **move: Any) -> dict[str, Any]:
    response = server.post("/v1/completions", prompt=PROMPT, max_tokens=1, steering={"interventions": [move]})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_refusals_of_requests_name_the_place(engine: tuple[Server, ReferenceModel]) -> None:
    server, _ = engine
    error = refused(server, op="add", vector="plsu", value=1, unit="act")
    assert (error["code"], error["param"]) == ("unknown_vector", "steering.interventions[0].vector")
    assert "Did you mean 'plus'?" in error["message"]
    error = refused(server, op="add", vector="plus", value=1)
    assert (error["code"], error["param"]) == ("invalid_steering", "steering.interventions[0].unit")
    error = refused(server, op="add", vector="plus", value=60, unit="resid_norm")
    assert (error["code"], error["param"]) == ("dose_too_large", "steering.interventions[0]")


def test_a_deleted_vector_stays_with_the_requests_that_run(engine: tuple[Server, ReferenceModel]) -> None:
    server, _ = engine
    first, second = Made(draw(11, 5.0), 1), Made(draw(12, 5.0), 1)
    assert upload(server, "brief", first.file()).status_code == 201
    assert upload(server, "brief", first.file()).status_code == 200
    error = upload(server, "brief", second.file())
    assert (error.status_code, error.json()["error"]["code"]) == (400, "vector_exists")
    steering = {"interventions": [{"op": "add", "vector": "brief", "value": 4.0, "unit": "act", "tokens": "generated"}]}
    body = {"model": server.model, "prompt": BASE[:9], "temperature": 0, "steering": steering}
    body |= {"max_tokens": 140, "ignore_eos": True}
    expected = server.http.post("/v1/completions", json=body).json()
    with server.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
        lines = stream.iter_lines()
        got = [next(lines)]
        assert server.http.delete("/v1/vectors/brief").json()["deleted"] is True
        assert refused(server, **steering["interventions"][0])["code"] == "unknown_vector"
        for number in range(CAPACITY - 2):  # all other rows of the site: one is own-site's, and one still in use
            assert upload(server, f"filler-{number}", Made(draw(20 + number), 1).file()).status_code == 201
        # there is no room for one more, unless the stream has ended meanwhile
        late = upload(server, "late", Made(draw(29), 1).file())
        assert late.status_code == 201 or late.json()["error"]["code"] in ("vectors_full", "vectors_busy")
        got += lines
    server.http.delete("/v1/vectors/late")
    events = [json.loads(line[6:]) for line in got if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == expected["choices"][0]["text"]
    assert events[-1]["steering"]["sae"] == expected["steering"]["sae"]
    assert events[-1]["steering"]["interventions"][0]["site"] == "resid_post 1"
    assert upload(server, "brief", second.file()).status_code == 201
    other = server.http.post("/v1/completions", json=body).json()
    assert other["choices"][0]["text"] != expected["choices"][0]["text"]
    full = upload(server, "one-more", Made(draw(30), 1).file())
    assert (full.status_code, full.json()["error"]["code"]) == (400, "vectors_full")
    for name in ("brief", "filler-0", "filler-1"):
        assert server.http.delete(f"/v1/vectors/{name}").status_code == 200
    assert server.http.delete("/v1/vectors/brief").status_code == 404
    assert sorted(item["name"] for item in server.http.get("/v1/vectors").json()["data"]) == sorted(VECTORS)


def test_vectors_outlast_a_server_that_is_killed(tmp_path: Path, model_folder: Path) -> None:
    model = make_model(tmp_path / "model", model_folder)
    flags = ["--sae", "none", "--vector-site", "all", "--vectors", str(tmp_path / "vectors"), "--api-key", "secret"]
    flags += ["--dtype", "float32", "--max-model-len", "512", "--served-model-name", "tiny"]
    made = Made(draw(5, 2.0), 1, sign=-1)
    # what is kept does not depend on it, and compiling takes half of what this test does
    with serve(tmp_path / "first.log", str(model), *flags, "--enforce-eager", name="tiny") as server:
        assert server.http.get("/v1/vectors").status_code == 401
        server.http.headers["authorization"] = "Bearer secret"
        assert server.http.get("/v1/vectors").json()["sites"] == [f"resid_post {layer}" for layer in range(4)]
        known = upload(server, "kept", made.file()).json()
        upload(server, "gone", Made(draw(6), 2).file())
        assert server.http.delete("/v1/vectors/gone").status_code == 200
        assert server.pid is not None
        os.killpg(server.pid, signal.SIGKILL)
    folder = tmp_path / "vectors"  # as earlier versions kept them
    assert not folder.exists()
    folder.mkdir()
    (folder / "old.safetensors").write_bytes(Made(draw(7), 2).file())
    (folder / "cut.safetensors").write_bytes(Made(draw(7), 2).file()[:-8])
    (folder / "elsewhere.safetensors").write_bytes(Made(draw(8), 1, "resid_mid").file())
    with serve(tmp_path / "second.log", str(model), *flags, name="tiny") as server:
        server.http.headers["authorization"] = "Bearer secret"
        assert [item["name"] for item in server.http.get("/v1/vectors").json()["data"]] == ["kept", "old"]
        assert server.http.get("/v1/vectors/kept").json() == known
        oracle = ReferenceModel(model, {"vector:kept": made.reference()}, SPECIAL_IDS)
        assert_agreement(server, oracle, PROMPT, [Move("vector:kept", 0, "clamp", 8.0)])
        said = (tmp_path / "second.log").read_text()
        assert "vector cut is left out" in said
        assert "vector elsewhere is left out" in said
    assert sorted(path.name for path in folder.iterdir()) == ["cut.safetensors", "elsewhere.safetensors", "taken-over"]
