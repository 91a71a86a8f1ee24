"""
From a request's JSON body to a `Steering`, or a refusal that names the place.

vLLM's request classes ignore unknown keys, so a misspelt `steering` would be served unsteered. Everything here exists
so that a body which looks as if it asked for steering either gets it or is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic import ValidationError

from saeclamp.types import CONDITIONS, MAX_KEY, Steering, looks_like_steering
from saeclamp.types.refusals import PARTS, did_you_mean, refusal, shown
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

MAX_FIELD_NAMES = 10_000
"""Different names of fields in a body, where these could be misspelt ones."""
MAX_FIELDS = 10_000
"""Fields of `steering` and of all within it: more than 64 interventions and 16 rules can have."""
MAX_COMPARED_KEYS = 16
"""Unknown fields of `steering` for which a near one is looked for."""

_OF_STEERING = {"steering", *Steering.model_fields}.union(*(kind.model_fields for kind in PARTS.values()), CONDITIONS)
"""Fields of `steering` and of all within it."""


def parse_body(content: bytes, max_fields: int | None = None) -> Any:
    """
    Parse JSON, refusing an object that has `steering`, or one of its parts, twice.

    Python keeps the last of two equal keys, so a trailing `"steering": null` would switch the steering off, and a trailing
    `"rules": []` a rule. Raises RequestError or ValueError.

    max_fields: of one object, whose names are no longer than any field's; None: any number of any length
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if max_fields is not None:
            _refuse_large(pairs, max_fields)
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


def _refuse_large(pairs: Sequence[tuple[str, Any]], max_fields: int) -> None:
    if len(pairs) > max_fields:
        raise InvalidRequestError(
            f"An object of the body has {len(pairs)} fields; at most {max_fields} are read.", None
        )
    longest = max((key for key, _ in pairs), key=len, default="")
    if len(longest) > MAX_KEY:
        raise InvalidRequestError(f"The name of a field has {len(longest)} characters: {shown(longest)}.", None)


def steering_of(body: Any) -> Steering | None:
    """Return the request's `steering`, None when the body asks for none. Raises RequestError."""
    if not isinstance(body, Mapping):
        return None
    refuse_lookalikes(body)
    steering = body.get("steering")
    if steering is None:
        return None
    _refuse_many_fields(steering)
    _refuse_foreign_shapes(steering)
    try:
        return Steering.model_validate(steering)
    except ValidationError as exc:
        why = refusal(exc, steering, Steering, "steering")
        raise InvalidSteeringError(str(why), why.path) from None


class _Keys:
    """Field names of a body that are looked at one by one; so many that it would take long are refused."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def look_through(self, keys: Iterable[str]) -> list[str]:
        """Return those that were not looked at before. Raises InvalidRequestError."""
        new = [key for key in keys if key not in self._seen]
        self._seen.update(new)
        if len(self._seen) > MAX_FIELD_NAMES:
            raise InvalidRequestError(
                f"The body has more than {MAX_FIELD_NAMES} different field names where there are a few dozen.", None
            )
        return new


def refuse_lookalikes(body: Mapping[str, Any]) -> None:
    """Raise RequestError for a key that asks for steering under another name or in another place."""
    keys = _Keys()
    keys.look_through(body)
    for key, value in body.items():
        if key == "steering":
            continue
        _refuse_key(key, value)
        if key.lower() in WRAPPERS:
            _refuse_inside(value, key, keys)
        if key == "vllm_xargs" and isinstance(value, Mapping):
            keys.look_through(value)
            _refuse_foreign_xargs(value)
        if key in ("messages", "input") and isinstance(value, Sequence):
            for number, message in enumerate(value):
                if isinstance(message, Mapping) and any(map(looks_like_steering, keys.look_through(message))):
                    raise InvalidSteeringError(f"A message cannot be steered. {AT_TOP_LEVEL}", f"{key}[{number}]")


def _refuse_key(key: str, value: Any) -> None:
    if not key.isascii():  # no field has such a name, and some of these letters only look like those of `steering`
        escaped = key[:MAX_KEY].encode("ascii", "backslashreplace").decode()
        raise InvalidSteeringError(f"Unknown field {escaped!r}. Did you mean 'steering'?", escaped)
    if key.lower() in FOREIGN_KEYS and value is not None:
        raise InvalidSteeringError(
            f"A top-level {key!r} is how {FOREIGN_KEYS[key.lower()]} asks for steering. {AT_TOP_LEVEL}", key
        )
    if key.lower() in MISPLACED_KEYS:
        raise InvalidSteeringError(f"A top-level {key!r} is not understood. {AT_TOP_LEVEL}", key)
    if looks_like_steering(key):
        raise InvalidSteeringError(f"Unknown field {shown(key)}. Did you mean 'steering'?", key[:MAX_KEY])


def _refuse_inside(value: Any, path: str, keys: _Keys) -> None:
    objects = [value]  # not by recursion: a body may be as deep as the parser allows
    while objects:
        inner = objects.pop()
        if not isinstance(inner, Mapping):
            continue
        # our own key would reach the engine unchecked and unsalted
        if any(key == EXTRA_ARGS_KEY or looks_like_steering(key) for key in keys.look_through(inner)):
            raise InvalidSteeringError(f"{path!r} is not read for steering. {AT_TOP_LEVEL}", path)
        objects += inner.values()


def _refuse_foreign_xargs(xargs: Mapping[str, Any]) -> None:
    for key in xargs:
        if key.lower() in FOREIGN_XARGS or looks_like_steering(key):
            owner = FOREIGN_XARGS.get(key.lower(), "another project")
            path = f"vllm_xargs.{key[:MAX_KEY].encode('ascii', 'backslashreplace').decode()}"
            raise InvalidSteeringError(f"{path} belongs to {owner}. {AT_TOP_LEVEL}", path)


def _refuse_many_fields(steering: Any) -> None:
    """Bound what is said of wrong fields, each of which pydantic writes an error of."""
    num, inside = 0, [steering]
    while inside:
        value = inside.pop()
        if isinstance(value, Mapping):
            num += len(value)
            longest = max(map(len, value), default=0)
            if longest > MAX_KEY:
                raise InvalidSteeringError(f"steering: a field's name has {longest} characters.", "steering")
            value = [*value.values()]
        if num > MAX_FIELDS:
            raise InvalidSteeringError(f"steering: these are more than {MAX_FIELDS} fields.", "steering")
        if isinstance(value, list):
            inside += [part for part in value if isinstance(part, Mapping | list)]


def _refuse_foreign_shapes(steering: Any) -> None:
    expected = "here 'steering' is an object with 'interventions', 'rules' or 'readout'"
    if isinstance(steering, str):
        raise InvalidSteeringError(f"A string is saklas's steering expression; {expected}.", "steering")
    if isinstance(steering, Sequence):
        raise InvalidSteeringError(f"A list is the RhizoNymph fork's steering gates; {expected}.", "steering")
    if isinstance(steering, Mapping) and not steering.keys() & Steering.model_fields.keys():
        if "vectors" in steering or "conflict" in steering:
            raise InvalidSteeringError(f"'vectors' is EasySteer's steering; {expected}.", "steering.vectors")
        near = any(did_you_mean(key, Steering.model_fields) for key in islice(steering, MAX_COMPARED_KEYS))
        if steering and not near and all(isinstance(value, int | float | list) for value in steering.values()):
            raise InvalidSteeringError(
                f"A mapping from names to numbers or vectors is another project's steering; {expected}.", "steering"
            )
