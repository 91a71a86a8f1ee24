"""
From a request's JSON body to a `Steering`, or a refusal that names the place.

vLLM's request classes ignore unknown keys, so a misspelt `steering` would be served unsteered. Everything here exists
so that a body which looks as if it asked for steering either gets it or is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from saeclamp.types import (
    CONDITIONS,
    TOKEN_OBJECTS,
    FeatureIndex,
    Operation,
    Readout,
    Rule,
    Steering,
    looks_like_steering,
)
from saeclamp.types.interventions import FEATURE_PATTERN
from saeclamp_server.errors import InvalidRequestError, InvalidSteeringError, RequestError, did_you_mean
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

CHOOSING_TOKENS = f"tokens are 'all', 'prompt' or 'generated', or an object with one of {', '.join(TOKEN_OBJECTS)}"

A_FEATURE = (
    "a feature is written <sae>/<index> or <sae>/<name>, such as bundled/golden-gate (without spaces), or as an object with "
    "sae and index"
)

A_NAME = "a name is 1 to 64 letters, digits, '_', '.' and '-'"

A_CONDITION = "a condition is an object with 'feature' and 'above' or 'below', or with one of 'all', 'any' and 'not'"

OPERATIONS: dict[int | str, type[BaseModel]] = {
    model.model_fields["op"].default: model for model in get_args(Operation)
}

PARTS: dict[int | str, type[BaseModel]] = {
    **OPERATIONS,
    **{f"<{key}>": kind for key, kind in {**TOKEN_OBJECTS, **CONDITIONS}.items()},
    "<object>": FeatureIndex,
    "rules": Rule,
    "readout": Readout,
}
"""Objects within `steering`, by how pydantic's locations name them."""

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
        raise _refusal(exc, steering) from None


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


def _refusal(exc: ValidationError, steering: Any) -> RequestError:
    """Turn pydantic's first error into a sentence and a JSON path."""
    errors = exc.errors(include_url=False)
    # a misspelt field is reported before the field that is missing because of it
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    path = json_path(error["loc"], steering)
    key = error["loc"][-1] if error["loc"] else None
    if error["type"] == "extra_forbidden":
        known = _known_fields(error["loc"])
        of_interventions = {name for model in OPERATIONS.values() for name in model.model_fields}
        if len(error["loc"]) == 1 and key in of_interventions:
            return InvalidSteeringError(f"{path}: {key!r} is a field of each intervention.", path)
        return InvalidSteeringError(
            f"{path}: unknown field {key!r}.{did_you_mean(str(key), known)} Known: {', '.join(known)}.", path
        )
    if error["type"] == "union_tag_invalid" and error["loc"][-1:] != ("tokens",) and not _is_condition(error["loc"]):
        asked, known = error.get("input"), [*map(str, OPERATIONS)]
        asked = asked.get("op") if isinstance(asked, Mapping) else asked
        return InvalidSteeringError(
            f"{path}: unknown operation {asked!r}.{did_you_mean(str(asked), known)} Known: {', '.join(known)}.", path
        )
    return InvalidSteeringError(f"{path}: {in_plain_words(error)}.", path)


def _is_condition(loc: tuple[int | str, ...]) -> bool:
    return "when" in loc and loc[-1] != "tokens"


def _known_fields(loc: tuple[int | str, ...]) -> list[str]:
    """Return the fields of the object that `loc` points into: of the innermost one that it names."""
    for part in reversed(loc[:-1]):
        if part in PARTS:
            return [field.alias or name for name, field in PARTS[part].model_fields.items()]
    return [*Steering.model_fields]


def in_plain_words(error: Mapping[str, Any]) -> str:
    """Say what pydantic found in the words of someone who writes JSON."""
    kind, message = error["type"], str(error["msg"])
    if error["loc"][-1:] == ("tokens",):
        return CHOOSING_TOKENS
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind in ("union_tag_not_found", "union_tag_invalid") and _is_condition(error["loc"]):
        return A_CONDITION
    if "then" in error["loc"][-2:] and kind != "union_tag_not_found":
        return "'then' is 'abort' or a list of interventions"
    if kind == "union_tag_not_found":
        return f"the field 'op' is missing: {', '.join(map(str, OPERATIONS))}"
    if kind == "string_pattern_mismatch" and error["ctx"]["pattern"] != FEATURE_PATTERN:
        return A_NAME
    if kind == "string_pattern_mismatch" or (kind == "model_type" and "<object>" in error["loc"]):
        return A_FEATURE
    if kind == "too_short":
        return "the list is empty"
    return message.replace("Tuple", "List").replace("tuple", "list").replace("Input", "The value")


def _is_branch(part: int | str) -> bool:
    """Whether a part of a location names a branch of a union, not a field."""
    return part in OPERATIONS or str(part).startswith("<")


def json_path(loc: tuple[int | str, ...], value: Any, path: str = "steering") -> str:
    """
    Write pydantic's location as a JSON path into the request, leaving out the names of union branches.

    path: that of `value`; empty for the whole body
    """
    for position, part in enumerate(loc):
        if isinstance(part, int) and isinstance(value, Sequence) and part < len(value):
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(value, Mapping) and part in value:
            path, value = f"{path}.{part}", value[part]
        elif position == len(loc) - 1 and isinstance(value, Mapping) and not _is_branch(part):
            path = f"{path}.{part}"  # the field that is missing
    return path.removeprefix(".")
