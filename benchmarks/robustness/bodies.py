"""Random requests that are right, and what becomes of them when something in them is changed at random."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.robustness.server import NUM_LAYERS

NUM_FEATURES = 64
WORDS = """
    the old miller and his three sons lived near a river that ran to the sea where ships came home at night
    """.split()  # noqa: SIM905
OPERATIONS = ("clamp", "add", "at_least", "at_most", "scale", "ablate")
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 1e308, -0.0, 5e-324, 0.1),
    *(
        "",
        "a",
        "sae0/3",
        "\x00",
        "\ud800",
        "é" * 300,
        "steering",
        "../../etc/passwd",
        "NaN",
        "' OR 1=1 --",
        "a" * 10_000,
    ),
    *([], {}, [[]], [None], {"": None}, {"op": "clamp"}, [[[[[[[[]]]]]]]]),
)
ODD_KEYS = (
    "steerng",
    "Steering",
    "steering ",
    "steer",
    "interventions",
    "variant",
    "feature",
    "",
    "\u200bsteering",
    "extra_body",
)


def steering(chance: random.Random) -> dict[str, Any]:
    """Draw a `steering` object that a server of ours accepts."""
    made: dict[str, Any] = {}
    if chance.random() < 0.8:
        made["interventions"] = _distinct([_move(chance) for _ in range(chance.randint(1, 6))])
    if chance.random() < 0.4:
        made["rules"] = [_rule(chance, number) for number in range(chance.randint(1, 4))]
    if chance.random() < 0.3 or not made:
        made["readout"] = {"features": [_feature(chance)], "top_k": chance.randint(0, 8), "tokens": _tokens(chance)}
    if chance.random() < 0.3:
        made["receipt"] = chance.choice(("summary", "tokens"))
    return made


def _distinct(moves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out a second move of a feature: the two would contradict each other."""
    return [*{move["feature"]: move for move in moves}.values()]


def _feature(chance: random.Random) -> str:
    return f"sae{chance.randrange(NUM_LAYERS)}/{chance.randrange(NUM_FEATURES)}"


def _tokens(chance: random.Random) -> Any:
    return chance.choice(
        ("all", "prompt", "generated", {"first": 9}, {"after": 3}, {"positions": [1, 2, chance.randint(3, 99)]})
    )


def _move(chance: random.Random) -> dict[str, Any]:
    op = chance.choice(OPERATIONS)
    move: dict[str, Any] = {"op": op, "feature": _feature(chance), "tokens": _tokens(chance)}
    if op == "scale":
        move["factor"] = chance.uniform(-3, 3)
    elif op != "ablate":
        move |= {"value": chance.uniform(-9, 9), "unit": chance.choice(("act", "act", "resid_norm"))}
    return move


def _rule(chance: random.Random, number: int) -> dict[str, Any]:
    when: Any = {"feature": f"sae0/{chance.randrange(NUM_FEATURES)}", "above": chance.uniform(-1, 9), "unit": "act"}
    for kind in chance.choices(("not", "any", "all", ""), k=2):
        when = {kind: when if kind == "not" else [when]} if kind else when
    then: Any = (
        "abort" if chance.random() < 0.2 else [{"op": "ablate", "feature": f"sae1/{chance.randrange(NUM_FEATURES)}"}]
    )
    return {"name": f"r{number}", "when": when, "then": then, "tokens": chance.choice(("all", "generated"))}


def _text(chance: random.Random, most: int = 60) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(1, most)))


def _sampling(chance: random.Random) -> dict[str, Any]:
    drawn = {"max_tokens": chance.randint(1, 8), "temperature": chance.choice((0, 1)), "seed": chance.randrange(99)}
    if chance.random() < 0.2:
        drawn["logprobs"] = True
    if chance.random() < 0.2:
        drawn["n"] = 2
    return drawn


def completion(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """Draw a text completion."""
    body = {"model": "tiny", "prompt": _text(chance), **_sampling(chance)}
    if body.get("logprobs"):
        body["logprobs"] = 2
    return "/v1/completions", body


def chat(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """Draw a chat completion."""
    roles = ["user", *(role for _ in range(chance.randint(0, 2)) for role in ("assistant", "user"))]
    messages = [{"role": role, "content": _text(chance, 20)} for role in roles]
    return "/v1/chat/completions", {"model": "tiny", "messages": messages, **_sampling(chance)}


def response(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """Draw a request of `/v1/responses`."""
    return "/v1/responses", {"model": "tiny", "input": _text(chance), "max_output_tokens": chance.randint(1, 8)}


def message(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """Draw a request of `/v1/messages`."""
    messages = [{"role": "user", "content": _text(chance)}]
    return "/v1/messages", {"model": "tiny", "messages": messages, "max_tokens": chance.randint(1, 8)}


def own(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """Draw a request of one of our own endpoints."""
    text = _text(chance, 20)
    return chance.choice(
        (
            ("/v1/steering/validate", {"messages": [{"role": "user", "content": text}]}),
            ("/v1/features/inspect", {"text": text, "top_k": chance.randint(1, 9)}),
            ("/v1/features/contrast", {"positive": [text, text + " home"], "negative": [_text(chance), _text(chance)]}),
            ("/v1/features/neighbours", {"features": [_feature(chance)], "limit": 3}),
            ("/v1/variants", {"name": f"fuzz-{chance.randrange(30)}", "description": text}),
        )
    )


KINDS: Mapping[Callable[[random.Random], tuple[str, dict[str, Any]]], int] = {
    completion: 4,
    chat: 4,
    response: 1,
    message: 1,
    own: 3,
}
"""With how often each is drawn."""
TAKES_STEERING = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")


def draw(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """Draw a path and a body that steers, if its endpoint can."""
    (kind,) = chance.choices([*KINDS], [*KINDS.values()])
    path, body = kind(chance)
    if path in TAKES_STEERING or path in ("/v1/steering/validate", "/v1/variants"):
        body["steering"] = steering(chance)
    if path in TAKES_STEERING and chance.random() < 0.3:
        body["stream"] = True
    return path, body


def mutated(body: dict[str, Any], chance: random.Random) -> bytes:
    """Change one to three things of a body anywhere, and write it; sometimes the bytes are changed too."""
    changed = copy.deepcopy(body)
    for _ in range(chance.randint(1, 3)):
        _mutate(changed, chance)
    content = json.dumps(changed, ensure_ascii=True).encode()
    if chance.random() < 0.05:
        at = chance.randrange(len(content))
        content = chance.choice(
            (content[:at], content[:at] + b"\xff" + content[at:], content + b"}", b"\xef\xbb\xbf" + content)
        )
    return content


def _mutate(root: Any, chance: random.Random) -> None:
    places = [*_places(root)]
    if not places:
        return
    parent, key = chance.choice(places)
    match chance.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[chance.choice(ODD_KEYS)] = parent.pop(key)
        case 2 if isinstance(parent, dict):
            parent[chance.choice(ODD_KEYS)] = _odd(chance)
        case 3 if isinstance(root, dict):
            root[chance.choice(ODD_KEYS)] = copy.deepcopy(parent[key])
        case 4 if isinstance(parent, list):
            parent.extend(copy.deepcopy([parent[key]]) * chance.randint(1, 90))
        case _:
            parent[key] = _odd(chance)


def _odd(chance: random.Random) -> Any:
    return copy.deepcopy(chance.choice(ODD_VALUES))  # the next change may be within it


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        children = [*value.items()]
    elif isinstance(value, list):
        children = [*enumerate(value)]
    else:
        return
    for key, child in children:
        yield value, key
        yield from _places(child)
