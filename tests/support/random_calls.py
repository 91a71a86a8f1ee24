"""Calls drawn over the whole API, and what of an answer must be the same wherever it comes from."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import httpx
from tests.support.random_vectors import Made, draw
from tests.support.serving import wait_until

VECTORS = ("calm", "Bright", "b-2", "gone.1", "other", "nobody")
VARIANTS = ("chef", "Baker", "a-1", "a.b", "cook_2")
FEATURES = ("low/3", "low/17", "low/bridge", "low/food", "low/40")
TEXTS = ("The bridge at night", "Bread and butter", "One day a fox", "Snow fell on the hills", "He wrote a letter")
ROOT = r'"root": ?"([^"@]*)"'
"""Where a model is; a variant's root is its version."""
SITES = ((1, "resid_post"), (2, "resid_post"))


class Call(NamedTuple):
    method: str
    path: str
    json: Any = None
    params: dict[str, str] | None = None
    content: bytes | None = None
    headers: dict[str, str] | None = None
    imports: bool = False
    """True if the body is what the last export gave."""


class Draw:
    """Draws calls, of which many name what earlier ones made."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def call(self) -> Call:
        kinds: dict[Callable[[], Call], int] = {
            self.chat: 6,
            self.completion: 7,
            self.response: 4,
            self.message: 4,
            self.new_variant: 6,
            self.variant: 5,
            self.export: 3,
            self.upload: 7,
            self.vector: 8,
            self.derive: 1,
            self.features: 5,
            self.passage: 4,
            self.steering: 4,
            self.models: 3,
            self.mistake: 5,
        }
        (kind,) = self.chance.choices([*kinds], [*kinds.values()])
        return kind()

    def any(self, *of: Any) -> Any:
        return self.chance.choice(of)

    def move(self) -> dict[str, Any]:
        what = {"vector": self.any(*VECTORS)} if self.chance.random() < 0.3 else {"feature": self.any(*FEATURES)}
        op = self.any("add", "add", "clamp", "at_least", "ablate")
        tokens = {"tokens": self.any("all", "prompt", "generated", {"after": 2})}
        if op == "ablate":
            return {"op": op, **what, **tokens}
        value = round(self.chance.uniform(-4, 4), 2)
        return {"op": op, **what, "value": value, "unit": self.any("act", "resid_norm"), **tokens}

    def moves(self) -> dict[str, Any]:
        steering: dict[str, Any] = {"interventions": [self.move() for _ in range(self.any(1, 1, 2))]}
        if self.chance.random() < 0.25:
            when = {"feature": "low/5", "above": 0.1, "unit": "act"}
            steering["rules"] = [{"name": "r", "when": when, "then": [self.move()]}]
        return steering

    def steered(self) -> dict[str, Any]:
        """The model and the steering of a request, if it has any."""
        model = self.any("tiny", "tiny", "tiny", "tiny", f"tiny:{self.any(*VARIANTS)}", f"alias-{self.any(*VARIANTS)}")
        steering = self.moves() if self.chance.random() < 0.7 else None
        if steering and self.chance.random() < 0.3:
            steering |= {"readout": {"features": ["low/3"], "top_k": 2}, "receipt": "tokens"}
        return {"model": model, **({"steering": steering} if steering else {})}

    def drawn(self, limit: str = "max_tokens") -> dict[str, Any]:
        how = self.any({"temperature": 0}, {"temperature": 1, "seed": self.chance.randrange(9)})
        return {limit: self.any(3, 6, 9), **how, **self.any({}, {"stream": True})}

    def conversation(self) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": self.any(*TEXTS)}]}

    def chat(self) -> Call:
        more = self.any({}, {"logprobs": True, "top_logprobs": 2})
        return Call("POST", "/v1/chat/completions", self.steered() | self.conversation() | self.drawn() | more)

    def completion(self) -> Call:
        more = self.any({}, {"n": 2}, {"logprobs": 1}, {"echo": True})
        body = self.steered() | {"prompt": self.any(*TEXTS), "ignore_eos": True} | self.drawn() | more
        return Call("POST", "/v1/completions", body)

    def response(self) -> Call:
        body = self.steered() | {"input": self.any(*TEXTS)} | self.drawn("max_output_tokens")
        body.pop("seed", None)
        return Call("POST", "/v1/responses", body | {"temperature": 0})

    def message(self) -> Call:
        body = self.steered() | self.conversation() | self.drawn()
        body.pop("seed", None)
        return Call("POST", "/v1/messages", body | {"temperature": 0})

    def new_variant(self) -> Call:
        name = self.any(*VARIANTS)
        more = self.any({}, {"alias": f"alias-{self.any(name, *VARIANTS)}"}, {"description": self.any(*TEXTS)})
        return Call("POST", "/v1/variants", {"name": name, "steering": self.moves(), **more})

    def variant(self) -> Call:
        method, name = self.any("GET", "GET", "DELETE"), f"/{self.any(*VARIANTS)}"
        return Call(method, "/v1/variants" + (self.any("", name) if method == "GET" else name))

    def export(self) -> Call:
        if self.chance.random() < 0.5:
            return Call("GET", "/v1/variants/export")
        return Call("POST", "/v1/variants/import", imports=True)

    def upload(self) -> Call:
        name, (layer, point) = self.any(*VECTORS[:-1]), self.any(*SITES)
        made = Made(draw(self.chance.randrange(3), 2.0), layer, point, self.any(1, -1))
        headers = {"content-type": "application/octet-stream"}
        return Call("POST", "/v1/vectors", params={"name": name}, content=made.file(), headers=headers)

    def vector(self) -> Call:
        method, name = self.any("GET", "DELETE"), f"/{self.any(*VECTORS)}"
        return Call(method, "/v1/vectors" + (self.any("", name) if method == "GET" else name))

    def derive(self) -> Call:
        sets = {"positive": [*TEXTS[:4]], "negative": [text.upper() for text in TEXTS[1:]]}
        return Call("POST", "/v1/vectors/derive", {"name": self.any(*VECTORS), "site": "resid_post.2", **sets})

    def features(self) -> Call:
        query = self.any({"query": "food"}, {"query": "a bridge", "limit": "2"}, {"offset": "3"}, {"sae": "nothing"})
        return self.any(
            Call("GET", "/v1/features", params=query),
            Call("GET", f"/v1/features/{self.any(*FEATURES)}"),
            Call("GET", "/v1/saes"),
            Call("POST", "/v1/features/neighbours", {"features": [self.any(*FEATURES)], "limit": 3}),
        )

    def passage(self) -> Call:
        return self.any(
            Call("POST", "/v1/features/inspect", self.any(self.conversation(), {"text": self.any(*TEXTS)})),
            Call("POST", "/v1/features/contrast", {"positive": [*TEXTS[:2]], "negative": [*TEXTS[2:4]], "limit": 3}),
            Call("POST", "/v1/features/attribute", {"text": self.any(*TEXTS), "num_features": 4, "num_pairs": 1}),
        )

    def steering(self) -> Call:
        if self.chance.random() < 0.6:
            return Call("POST", "/v1/steering/validate", {"steering": self.moves()})
        return Call(
            "POST", "/v1/steering/compare", {"text": self.any(*TEXTS), "steering": self.moves(), "max_tokens": 4}
        )

    def models(self) -> Call:
        return Call("GET", f"/v1/models{self.any('', '/tiny', f'/tiny:{self.any(*VARIANTS)}', '/nothing')}")

    def mistake(self) -> Call:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
        move = {"op": "add", "feature": "low/3", "value": 1, "unit": "act"}
        return self.any(
            Call("POST", "/v1/completions", body | {"model": "tiny:nobody"}),
            Call("POST", "/v1/completions", body | {"model": "tinny"}),
            Call("POST", "/v1/completions", body | {"steering": {"interventions": [move | {"feature": "low/999"}]}}),
            Call("POST", "/v1/completions", body | {"steering": {"interventions": [move | {"value": 1e9}]}}),
            Call("POST", "/v1/completions", body | {"steering": {"intervention": [move]}}),
            Call("POST", "/v1/completions", body | {"prompt": "x " * 2000}),
            Call("POST", "/v1/completions", content=b"{", headers={"content-type": "application/json"}),
            Call("POST", "/v1/vectors", {"name": "calm"}, params={"name": "calm"}),
            Call("POST", "/v1/vectors", params={"name": "a b"}, content=b"x"),
            Call("GET", "/v1/vectors/a%00b"),
            Call("DELETE", "/v1/variants/tiny:low-bridge"),
            Call("PUT", "/v1/variants"),
            Call("GET", "/v1/nothing"),
        )


class Asker:
    """Sends calls to a server, and keeps what of its answers must be the same elsewhere."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.http = httpx.Client(base_url=url, timeout=300, headers=headers)
        self.export: Any = {"object": "variant.export", "data": []}
        self.replicas: list[str] = []
        self.fingerprints = set[str]()
        self.roots = set[str]()
        """What its answers say of the configuration, and of where the model is."""

    def wait_for_meaning(self) -> None:
        """Wait until searches are by meaning too, which begins a while after the start."""

        def is_searched() -> bool:
            return "meaning" in self.http.get("/v1/features", params={"query": "a bridge"}).json()["rankings"]

        assert wait_until(is_searched, 120), self.http.base_url

    def ask(self, call: Call) -> tuple[int, Any]:
        method, path, body, params, content, headers, imports = call
        more = {"json": self.export if imports else body} if body is not None or imports else {"content": content}
        answer = self.http.request(method, path, params=params, headers=headers, **more)  # type: ignore[arg-type]
        if path.endswith("/export"):
            self.export = answer.json()
        self.replicas += re.findall(r'"replica": ?"(\w+)"', answer.text)
        self.fingerprints |= {*re.findall(r'"system_fingerprint": ?"([^"]+)"', answer.text)}
        self.roots |= {*re.findall(ROOT, answer.text)}
        text = _anonymous(answer.text)
        if "event-stream" in answer.headers["content-type"]:
            return answer.status_code, _of_stream(text)
        return answer.status_code, _in_order(json.loads(text) if text else None)


def check_that_they_agree(single: Asker, many: Asker, num_calls: int = 300) -> None:
    """Ask a single server, and several that are to answer as one, the same; most kinds of calls must succeed somewhere."""
    drawn, statuses = Draw(0), Counter[tuple[str, int]]()
    for number in range(num_calls):
        call = drawn.call()
        expected, found = single.ask(call), many.ask(call)
        assert is_same(found, expected), f"call {number}: {call.method} {call.path} {call.json}: {expected}, {found}"
        statuses[call.path.split("/")[2], found[0]] += 1
    answered = {endpoint for endpoint, status in statuses if status in (200, 201)}
    assert answered >= {"chat", "completions", "responses", "messages", "variants", "vectors", "features", "steering"}
    assert sum(number for (_, status), number in statuses.items() if status < 300) > num_calls / 3, statuses
    assert all(status < 500 for _, status in statuses), statuses


def is_same(one: Any, other: Any) -> bool:
    """Compare answers. Sequences that run side by side are batched as the moment will have it: last bits depend on it."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-4)
    return type(one) is type(other) and bool(one == other)


def _anonymous(text: str) -> str:
    """Take out ids, times, and what says which server answered."""
    text = re.sub(r"\b(chatcmpl|cmpl|resp|msg|rs|modelperm)[-_][\w-]*[0-9a-f]{8}[\w-]*", "<id>", text)
    text = re.sub(r'"request_id": ?"[0-9a-f-]{32,36}"', '"request_id": null', text)
    text = re.sub(r'"(created|created_at|completed_at)": ?[\d.]+', r'"\1": 0', text)
    text = re.sub(ROOT, '"root": null', text)
    return re.sub(r'"(replica|fleet|system_fingerprint)": ?("[^"]*"|null)', r'"\1": null', text)


def _in_order(body: Any) -> Any:
    """Exported versions of one second are in no order."""
    if isinstance(body, dict) and body.get("object") == "variant.export":
        return sorted(body["data"], key=lambda one: (one["name"], one["sha256"]))
    return body


def _of_stream(text: str) -> Any:
    """Text, receipts and ends of a stream; which tokens come together depends on the moment."""
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    said, rest = "", []
    for event in events:
        choices = event.get("choices") or []
        delta = event.get("delta")
        said += "".join(
            f"<{one['index']}>{one.get('text') or (one.get('delta') or {}).get('content') or ''}" for one in choices
        )
        said += delta if isinstance(delta, str) else (delta or {}).get("text") or ""
        rest += [event[name] for name in ("steering", "error", "usage", "response") if event.get(name)]
        rest += [one["finish_reason"] for one in choices if one.get("finish_reason")]
    by_choice = {number: "".join(re.findall(rf"<{number}>([^<]*)", said)) for number in range(2)}
    return (by_choice if "<0>" in said else said), rest
