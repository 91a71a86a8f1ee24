"""Random steerings and prompts for engines of random weights, and how near to the oracle they must come."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from tests.support.checkpoints import SINK_ID
from tests.support.serving import Server

TOLERANCE = 1e-4
"""In logprob, of a model of four layers in fp32."""


NEAR_A_JUMP = 1e-4
"""Of a JumpReLU: an activation nearer than that to where it jumps may be none on one side and one on the other."""


MAX_MODEL_LEN = 160


FLAGS = (
    *(
        "--enforce-eager",
        "--max-model-len",
        str(MAX_MODEL_LEN),
        "--max-num-batched-tokens",
        "48",
        "--max-num-seqs",
        "8",
    ),
    *("--block-size", "32", "--num-gpu-blocks-override", "12", "--max-dose", "50"),
)
"""12 blocks hold 384 tokens: two of the longest requests and a part of a third."""


BASE = [1, *(100 + 37 * number % 900 for number in range(60))]


positions = st.integers(0, 120)


scopes = (
    st.sampled_from(["all", "prompt", "generated"])
    | st.builds(lambda num: {"first": num + 1}, positions)
    | st.builds(lambda num: {"after": num}, positions)
    | st.builds(lambda some: {"positions": some}, st.lists(positions, min_size=1, max_size=8))
    | st.builds(lambda some: {"positions": some}, st.lists(st.integers(-60, 90), min_size=1, max_size=8))
    | st.builds(lambda num: {"last": num}, st.integers(1, 60))
    | st.builds(
        lambda start, num: {"generated": [start, None if num is None else start + num]},
        st.integers(0, 12),
        st.none() | st.integers(1, 12),
    )
)


features = st.tuples(st.just("low") | st.just("high"), st.integers(0, 63)) | st.tuples(
    st.just("other"), st.integers(0, 31)
)


kinds = st.tuples(
    st.sampled_from(["clamp", "add", "at_least", "at_most", "scale", "ablate"]), st.floats(-9, 9, width=16)
)


prompts = st.builds(
    lambda num, tail: [*BASE[:num], *tail],
    st.integers(0, len(BASE)),
    st.lists(st.sampled_from([0, 1, 2, 305, 300, 301, SINK_ID]), min_size=1, max_size=40),
)


def completed(server: Server, prompt: list[int], steering: dict[str, Any] | None, **params: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 8, "ignore_eos": True, "return_token_ids": True, **params}
    response = server.post("/v1/completions", **body, **({"steering": steering} if steering else {}))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def streamed_choices(server: Server, body: dict[str, Any]) -> dict[int, tuple[str, str]]:
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    with server.http.stream("POST", "/v1/completions", json={"model": server.model, "stream": True, **body}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    index = choice["index"]
                    assert index not in reasons, "nothing comes after the end of a choice"
                    texts[index] = texts.get(index, "") + choice["text"]
                    if choice["finish_reason"]:
                        reasons[index] = choice["finish_reason"]
    return {index: (text, reasons[index]) for index, text in texts.items()}
