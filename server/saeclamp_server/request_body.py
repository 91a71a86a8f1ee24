"""
From a request's JSON body to a `Steering`, or a refusal that names the place.

vLLM's request classes ignore unknown keys, so a misspelt `steering` would be served unsteered. Everything here exists
so that a body which looks as if it asked for steering either gets it or is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from pydantic import ValidationError

from saeclamp.types import Steering
from saeclamp_server.errors import InvalidSteeringError, RequestError
from saeclamp_server.program import EXTRA_ARGS_KEY

FOREIGN_KEYS = {
    "controller": "Goodfire's Ember",
    "interventions": "SteeringAPI",
    "sae_clamp_specs": "the RhizoNymph fork of vLLM",
    "steering_vectors": "the RhizoNymph fork of vLLM",
    "prefill_steering_vectors": "the RhizoNymph fork of vLLM",
    "decode_steering_vectors": "the RhizoNymph fork of vLLM",
    "steering_clamps": "the RhizoNymph fork of vLLM",
    "steering_name": "the RhizoNymph fork of vLLM",
}
"""Top-level keys by which other projects ask for steering."""

FOREIGN_XARGS = {
    EXTRA_ARGS_KEY: "this server's own engine",
    "hotwire": "hotwire",
    "apply_steering_vectors": "vllm-lens",
    "apply_hooks": "vllm-lens",
}

PLANNED = {
    "rules": "rules",
    "readout": "readouts",
    "special_tokens": "steering special tokens",
    "vector": "uploaded vectors",
    "at_least": "the operation 'at_least'",
    "at_most": "the operation 'at_most'",
    "scale": "the operation 'scale'",
    "resid_norm": "the unit 'resid_norm'",
    "first": "token windows",
    "after": "token windows",
    "roles": "token scopes by role",
    "positions": "token scopes by position",
    "tokens": "receipts per token",
}
"""Words of the planned wire that this version does not know: refused by name rather than as a misspelling."""

SIMILAR = 0.8


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
        raise _refusal(exc, steering) from None


def refuse_lookalikes(body: Mapping[str, Any]) -> None:
    """Raise RequestError for a key that asks for steering under another name or in another place."""
    for key, value in body.items():
        if key == "steering":
            continue
        if key in FOREIGN_KEYS and value:
            raise InvalidSteeringError(
                f"{key!r} is how {FOREIGN_KEYS[key]} asks for steering; here it is the object 'steering'.", key
            )
        if looks_like_steering(key):
            raise InvalidSteeringError(f"Unknown field {key!r}. Did you mean 'steering'?", key)
        if key == "extra_body" and isinstance(value, Mapping) and any(map(looks_like_steering, value)):
            raise InvalidSteeringError(
                "'extra_body' is an argument of openai-python, which merges it into the request; "
                "in JSON put 'steering' at the top level.",
                key,
            )
        if key == "vllm_xargs" and isinstance(value, Mapping):
            _refuse_foreign_xargs(value)


def looks_like_steering(key: str) -> bool:
    """Is this key `steering`, or a near miss of it?"""
    plain = key.lower().replace("_", "").replace("-", "")
    return plain.startswith("steer") or SequenceMatcher(None, plain, "steering").ratio() >= SIMILAR


def _refuse_foreign_xargs(xargs: Mapping[str, Any]) -> None:
    for key in xargs:
        if key in FOREIGN_XARGS or looks_like_steering(key):
            owner = FOREIGN_XARGS.get(key, "another project")
            raise InvalidSteeringError(
                f"vllm_xargs.{key} belongs to {owner}; here steering is the top-level object 'steering'.",
                f"vllm_xargs.{key}",
            )


def _refuse_foreign_shapes(steering: Any) -> None:
    expected = "here 'steering' is an object with a list 'interventions'"
    if isinstance(steering, str):
        raise InvalidSteeringError(f"A string is saklas's steering expression; {expected}.", "steering")
    if isinstance(steering, Sequence):
        raise InvalidSteeringError(f"A list is the RhizoNymph fork's steering gates; {expected}.", "steering")
    if isinstance(steering, Mapping) and "interventions" not in steering:
        if "vectors" in steering or "conflict" in steering:
            raise InvalidSteeringError(f"'vectors' is EasySteer's steering; {expected}.", "steering.vectors")
        if steering and all(isinstance(value, int | float | list) for value in steering.values()):
            raise InvalidSteeringError(
                f"A mapping from names to numbers or vectors is another project's steering; {expected}.", "steering"
            )


def _refusal(exc: ValidationError, steering: Any) -> RequestError:
    """Turn pydantic's first error into a sentence and a JSON path."""
    error = exc.errors(include_url=False, include_context=True)[0]
    path = json_path(error["loc"], steering)
    key = error["loc"][-1] if error["loc"] else None
    asked = key if error["type"] == "extra_forbidden" else error.get("input")
    if isinstance(asked, Mapping):
        asked = asked.get("op") if error["type"] == "union_tag_invalid" else next(iter(asked), None)
    if isinstance(asked, str) and asked in PLANNED:
        return InvalidSteeringError(f"{path}: this version of saeclamp does not support {PLANNED[asked]} yet.", path)
    if error["type"] == "extra_forbidden":
        return InvalidSteeringError(f"{path}: unknown field {key!r}.{_did_you_mean(str(key), error['loc'])}", path)
    message = error["msg"].replace("Tuple", "List").replace("Input", "The value")
    return InvalidSteeringError(f"{path}: {message}.", path)


def _did_you_mean(key: str, loc: tuple[int | str, ...]) -> str:
    known = ["op", "feature", "value", "unit", "tokens"] if len(loc) > 1 else list(Steering.model_fields)
    best = max(known, key=lambda name: SequenceMatcher(None, key, name).ratio())
    return (
        f" Did you mean {best!r}?" if SequenceMatcher(None, key, best).ratio() > 0.6 else f" Known: {', '.join(known)}."
    )


def json_path(loc: tuple[int | str, ...], value: Any) -> str:
    """Write pydantic's location as a JSON path into the request, leaving out the names of union branches."""
    path = "steering"
    for position, part in enumerate(loc):
        if isinstance(part, int) and isinstance(value, Sequence) and part < len(value):
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(value, Mapping) and part in value:
            path, value = f"{path}.{part}", value[part]
        elif position == len(loc) - 1 and isinstance(part, str) and isinstance(value, Mapping) and part[0] != "<":
            path = f"{path}.{part}"  # the field that is missing
    return path
