"""An edit that no number can hold fails its own request, and nobody else notices: not beside it, not after it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.checkpoints import make_model, make_sae
from tests.support.random_vectors import Made, draw, upload
from tests.support.serving import Server, serve

NUM_LAYERS = 6
NUM_VECTORS = 10
POISON = "When the storm had passed, the crew went up and looked at what was left of the mast. " * 3
PLAIN = [f"Chapter {number}. The old miller and his {number} sons lived near" for number in range(12)]
OTHERS: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True, "logprobs": 3}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[Server]:
    """A cache of 24 blocks, so that those of a request are soon somebody else's."""
    folder = tmp_path_factory.mktemp("poison")
    model = make_model(folder / "model", model_folder, num_layers=NUM_LAYERS)
    flags = [
        "--dtype",
        request.param,
        "--max-model-len",
        "512",
        "--num-gpu-blocks-override",
        "24",
        "--block-size",
        "32",
    ]
    flags += ["--enforce-eager", "--served-model-name", "tiny", "--max-dose", "1e30", "--max-vectors", "16"]
    flags += ["--vector-site", "all", "--vectors", str(folder / "vectors")]
    for layer in range(NUM_LAYERS):
        sae = make_sae(folder / f"sae{layer}", layer=layer, d_in=64, seed=layer, threshold=0.0)
        flags += ["--sae", f"sae{layer}={sae}"]
    with serve(folder / "log", str(model), *flags, name="tiny") as running:
        for layer in range(NUM_LAYERS):
            for number in range(NUM_VECTORS):
                made = Made(draw(100 * layer + number, 9e8 if layer == 0 else 1.0), layer)
                assert upload(running, f"v{layer}-{number}", made.file()).status_code == 201
        yield running


def add(layer: int, value: float, unit: str = "act", **more: Any) -> list[dict[str, Any]]:
    return [
        {"op": "add", "vector": f"v{layer}-{number}", "value": value, "unit": unit, **more}
        for number in range(NUM_VECTORS)
    ]


def scale(layers: range, **more: Any) -> list[dict[str, Any]]:
    return [
        {"op": "scale", "vector": f"v{layer}-{number}", "factor": 1e6, **more}
        for layer in layers
        for number in range(NUM_VECTORS)
    ]


def features(layers: range) -> list[dict[str, Any]]:
    first = {"op": "clamp", "feature": "sae0/3", "value": 1e6, "unit": "act"}
    return [
        first,
        *({"op": "scale", "feature": f"sae{layer}/{n}", "factor": 1e6} for layer in layers for n in range(10)),
    ]


ALWAYS = {"name": "always", "when": {"not": {"feature": "sae0/1", "above": 1e6, "unit": "act"}}}

WAYS: dict[str, dict[str, Any]] = {
    "long vectors": {"interventions": add(0, 1e6)},
    "long vectors in the stream's lengths": {"interventions": add(1, 1e6, "resid_norm") + scale(range(2, 5))},
    "long vectors, then several layers that scale": {"interventions": add(0, 1e6) + scale(range(1, 5))},
    "several layers that scale": {"interventions": scale(range(1, 6))},
    "features of several layers": {"interventions": features(range(1, 6))},
    "in what is generated": {"interventions": add(0, 1e6, tokens="generated")},
    "in the last tokens of the prompt": {"interventions": add(0, 1e6, tokens={"after": 40})},
    "by a rule": {"rules": [{**ALWAYS, "then": add(0, 1e6)}]},
    "by a rule, in what is generated": {"rules": [{**ALWAYS, "then": add(0, 1e6), "tokens": "generated"}]},
    "with readings": {"interventions": add(0, 1e6), "readout": {"top_k": 2, "tokens": "all"}, "receipt": "tokens"},
}


@pytest.fixture(scope="module")
def alone(server: Server) -> list[dict[str, Any]]:
    return [plain(server, prompt) for prompt in PLAIN]


def plain(server: Server, prompt: str) -> dict[str, Any]:
    response = server.post("/v1/completions", prompt=prompt, **OTHERS)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    assert len(choice["logprobs"]["tokens"]) == OTHERS["max_tokens"]
    assert all(math.isfinite(logprob) for logprob in choice["logprobs"]["token_logprobs"])
    return choice


def check_others(server: Server, alone: list[dict[str, Any]]) -> None:
    """Plain requests of all prompts at once say what each said alone."""
    with ThreadPoolExecutor(len(PLAIN)) as pool:
        for before, now in zip(alone, pool.map(lambda prompt: plain(server, prompt), PLAIN), strict=True):
            assert now["logprobs"]["token_logprobs"][0] == pytest.approx(
                before["logprobs"]["token_logprobs"][0], abs=0.05
            )


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("way", WAYS)
def test_an_infinite_edit_fails_its_request_and_harms_nobody(
    server: Server, alone: list[dict[str, Any]], way: str, streams: bool
) -> None:
    body = {"prompt": POISON, "temperature": 0, "max_tokens": 8, "ignore_eos": True, "steering": WAYS[way]}
    with ThreadPoolExecutor(4) as pool:
        beside = pool.submit(check_others, server, alone)
        poisons = [*pool.map(lambda _: server.post("/v1/completions", **body, stream=streams), range(3))]
        beside.result()
    # the same once more, when what the first ones left may be in the prefix cache
    for response in (*poisons, server.post("/v1/completions", **body, stream=streams)):
        check_failed(response, streams)
    for _ in range(3):
        check_others(server, alone)


def check_failed(response: httpx.Response, streams: bool) -> None:
    if streams:
        *events, last, done = [line for line in response.text.split("\n") if line]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert done == "data: [DONE]"
        assert all("steering" not in json.loads(event.removeprefix("data: ")) for event in events)
    else:
        assert response.status_code == 500, response.text
        error = response.json()["error"]
    assert error["code"] == "steering_not_applied"
    assert "no finite vector" in error["message"]
    assert "smaller values" in error["message"]


def test_clients_that_leave_while_an_infinite_edit_runs_leave_nothing_behind(
    server: Server, alone: list[dict[str, Any]]
) -> None:
    body = {"model": "tiny", "prompt": POISON, "max_tokens": 200, "ignore_eos": True}
    for number in range(20):
        steering = {"interventions": add(0, 1e6, tokens={"after": number + 30})}
        with suppress(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}/v1/completions", json={**body, "steering": steering}, timeout=0.001 * (number + 1)
            )
    for _ in range(3):
        check_others(server, alone)


def test_edits_that_numbers_can_hold_are_made(server: Server, alone: list[dict[str, Any]]) -> None:
    answer = server.complete(POISON, [{"op": "add", "vector": "v1-0", "value": 1e6, "unit": "act"}])
    assert answer["steering"]["interventions"][0]["tokens"] == {"prompt": 60, "generated": 7, "sinks": 0}
    check_others(server, alone)
