"""
From a request's JSON body to a `Steering`, or a refusal that names the place.

vLLM's request classes ignore unknown keys, so a misspelt `steering` would be served unsteered. Everything here exists
so that a body which looks as if it asked for steering either gets it or is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from saeclamp.types import CONDITIONS, Steering, looks_like_steering
from saeclamp.types.refusals import PARTS, did_you_mean, refusal
from saeclamp_server.errors import InvalidRequestError, InvalidSteeringError
from saeclamp_server.program import EXTRA_ARGS_KEY

FOREIGN_KEYS = {
    "controller": "Goodfire's Ember",
    "features": "Neuronpedia",
    "interventions": "SteeringAPI",
    "sae_clamp_specs": "the RhizoNymph fork of vLLM",
    "steering_vectors": "the RhizoNymph fork of vLLM",
    "prefill_steering_vectors": "the RhizoNymph fork of vLLM",
    "decode_steering_vectors": "the RhizoNymph fork of vLLM",
    "steering_clamps": "the RhizoNymph fork of vLLM",
    "steering_name": "the RhizoNymph fork of vLLM",
}
"""Top-level keys by which other projects ask for steering."""

MISPLACED_KEYS = {
    *("intervention", "feature", "clamp", "clamps", "ablate", "sae", "saes", "sae_features", EXTRA_ARGS_KEY),
    *("rule", "rules", "readout", "readouts", "receipt", "vector", "vectors"),
}
"""Parts of `steering` that have no meaning at the top level."""

WRAPPERS = {
    "extra_body",
    "extrabody",
    "extra-body",
    "kwargs",
    "parameters",
    "extra_args",
    "extra_json",
    "extra_query",
    "sampling_params",
    "chat_template_kwargs",
    "nvext",
}
"""Objects in which clients wrap what they want passed on; `steering` inside them would be ignored."""

AT_TOP_LEVEL = "Steering is the object 'steering' at the top level of the request, with a list 'interventions'."

FOREIGN_XARGS = {
    EXTRA_ARGS_KEY: "this server's own engine",
    "hotwire": "hotwire",
    "apply_steering_vectors": "vllm-lens",
    "apply_hooks": "vllm-lens",
}

_OF_STEERING = {"steering", *Steering.model_fields}.union(*(kind.model_fields for kind in PARTS.values()), CONDITIONS)
"""Fields of `steering` and of all within it."""


def parse_body(content: bytes) -> Any:
    """
    Parse JSON, refusing an object that has `steering`, or one of its parts, twice.

    Python keeps the last of two equal keys, so a trailing `"steering": null` would switch the steering off, and a trailing
    `"rules": []` a rule. Raises RequestError or ValueError.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = next((key for key, count in counts.items() if count > 1 and key in _OF_STEERING), None)
            if twice is not None:
                raise InvalidSteeringError(f"The field {twice!r} is given twice.", "steering")
        return parsed

    try:
        value = json.loads(content, object_pairs_hook=once)
        if b"\\ud" in content.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("The body has half of a surrogate pair, which is no text.", None) from None
    except RecursionError:
        raise InvalidRequestError("The body is nested too deeply.", None) from None
    return value


def steering_of(body: Any) -> Steering | None:
    """Return the request's `steering`, None when the body asks for none. Raises RequestError."""
    if not isinstance(body, Mapping):
        return None
    refuse_lookalikes(body)
    steering = body.get("steering")
    if steering is None:
        return None
    _refuse_foreign_shapes(steering)
    try:
        return Steering.model_validate(steering)
    except ValidationError as exc:
        why = refusal(exc, steering, Steering, "steering")
        raise InvalidSteeringError(str(why), why.path) from None


def refuse_lookalikes(body: Mapping[str, Any]) -> None:
    """Raise RequestError for a key that asks for steering under another name or in another place."""
    for key, value in body.items():
        if key == "steering":
            continue
        _refuse_key(key, value)
        if key.lower() in WRAPPERS:
            _refuse_inside(value, key)
        if key == "vllm_xargs" and isinstance(value, Mapping):
            _refuse_foreign_xargs(value)
        if key in ("messages", "input") and isinstance(value, Sequence):
            for number, message in enumerate(value):
                if isinstance(message, Mapping) and any(map(looks_like_steering, message)):
                    raise InvalidSteeringError(f"A message cannot be steered. {AT_TOP_LEVEL}", f"{key}[{number}]")


def _refuse_key(key: str, value: Any) -> None:
    if not key.isascii():  # no field has such a name, and some of these letters only look like those of `steering`
        shown = key.encode("ascii", "backslashreplace").decode()
        raise InvalidSteeringError(f"Unknown field {shown!r}. Did you mean 'steering'?", shown)
    if key.lower() in FOREIGN_KEYS and value is not None:
        raise InvalidSteeringError(
            f"A top-level {key!r} is how {FOREIGN_KEYS[key.lower()]} asks for steering. {AT_TOP_LEVEL}", key
        )
    if key.lower() in MISPLACED_KEYS:
        raise InvalidSteeringError(f"A top-level {key!r} is not understood. {AT_TOP_LEVEL}", key)
    if looks_like_steering(key):
        raise InvalidSteeringError(f"Unknown field {key!r}. Did you mean 'steering'?", key)


def _refuse_inside(value: Any, path: str) -> None:
    objects = [value]  # not by recursion: a body may be as deep as the parser allows
    while objects:
        inner = objects.pop()
        if not isinstance(inner, Mapping):
            continue
        # our own key would reach the engine unchecked and unsalted
        if any(key == EXTRA_ARGS_KEY or looks_like_steering(key) for key in inner):
            raise InvalidSteeringError(f"{path!r} is not read for steering. {AT_TOP_LEVEL}", path)
        objects += inner.values()


def _refuse_foreign_xargs(xargs: Mapping[str, Any]) -> None:
    for key in xargs:
        if key.lower() in FOREIGN_XARGS or looks_like_steering(key):
            owner = FOREIGN_XARGS.get(key.lower(), "another project")
            path = f"vllm_xargs.{key.encode('ascii', 'backslashreplace').decode()}"
            raise InvalidSteeringError(f"{path} belongs to {owner}. {AT_TOP_LEVEL}", path)


def _refuse_foreign_shapes(steering: Any) -> None:
    expected = "here 'steering' is an object with 'interventions', 'rules' or 'readout'"
    if isinstance(steering, str):
        raise InvalidSteeringError(f"A string is saklas's steering expression; {expected}.", "steering")
    if isinstance(steering, Sequence):
        raise InvalidSteeringError(f"A list is the RhizoNymph fork's steering gates; {expected}.", "steering")
    if isinstance(steering, Mapping) and not steering.keys() & Steering.model_fields.keys():
        if "vectors" in steering or "conflict" in steering:
            raise InvalidSteeringError(f"'vectors' is EasySteer's steering; {expected}.", "steering.vectors")
        near = any(did_you_mean(key, Steering.model_fields) for key in steering)
        if steering and not near and all(isinstance(value, int | float | list) for value in steering.values()):
            raise InvalidSteeringError(
                f"A mapping from names to numbers or vectors is another project's steering; {expected}.", "steering"
            )
