"""
Bodies that ask for steering under another name, in another place or in another form.

vLLM's request classes ignore unknown keys, so each of these would be answered unsteered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from saeclamp.types import MAX_KEY, Steering, looks_like_steering
from saeclamp.types.refusals import did_you_mean, shown
from saeclamp_server.errors import InvalidRequestError, InvalidSteeringError
from saeclamp_server.program import EXTRA_ARGS_KEY, RECORD_KEY

EXAMPLE = '"steering": {"interventions": [{"op": "clamp", "feature": "<sae>/<name or index>", "value": 1}]}'

AT_TOP_LEVEL = f"Steering is an object at the top level of the request, with a list 'interventions': {EXAMPLE}."

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

MISPLACED_KEYS = {"op", "ops", "operation", "operations", "rule", "rules", "receipt", "vector", "vectors"}
"""Parts of `steering` that have no meaning at the top level, and words for them."""

STEERING_WORDS = re.compile(r"sae|saes|saeclamp|(un)?clamp\w*|ablat\w*|interven\w*|readouts?")
"""Words that no other field has in its name."""

FEATURE_WORDS = re.compile(r"features?|variants?|activations?")
"""Words that ask for steering where a key says no more than which, or how much."""

ATTRIBUTE_WORDS = {
    *("id", "ids", "index", "indices", "idx", "name", "names", "list", "spec", "specs", "config", "model", "mode"),
    *(
        "value",
        "values",
        "strength",
        "strengths",
        "scale",
        "scales",
        "weight",
        "weights",
        "coefficient",
        "factor",
        "layer",
    ),
    *("vector", "vectors", "direction", "directions", "addition", "additions", "edit", "edits", "boost", "control"),
}

FOREIGN_PHRASES = {"control_vector", "control_vectors", "control_vector_scaled", "lm_steer", "repe", "caa_vector"}

WRAPPERS = {
    *("extra_body", "extrabody", "kwargs", "parameters", "params", "extra_args", "extra_json", "extra_query", "extra"),
    *("extra_params", "sampling_params", "model_kwargs", "modelkwargs", "provider_options", "provideroptions"),
    *(
        "optional_params",
        "litellm_params",
        "generation_config",
        "generationconfig",
        "nvext",
        "options",
        "config",
        "body",
    ),
}
"""Objects in which clients wrap what they want passed on; `steering` inside them would be ignored."""

USER_DATA = {
    *("messages", "input", "prompt", "system", "instructions", "tools", "tool_choice", "functions", "documents"),
    *("metadata", "response_format", "structured_outputs", "text", "output_config", "logit_bias", "stop", "user"),
    *("previous_input_messages", "guided_json", "guided_choice", "query", "queries", "data", "data_1", "data_2"),
}
"""Fields that hold what users make up, where any word may stand."""

FOREIGN_XARGS = {
    EXTRA_ARGS_KEY: "this server's own engine",
    RECORD_KEY: "this server's own engine",
    "hotwire": "hotwire",
    "apply_steering_vectors": "vllm-lens",
    "apply_hooks": "vllm-lens",
}

MAX_FIELD_NAMES = 10_000
"""Different names of fields in a body, where these could be misspelt ones."""
MAX_COMPARED_KEYS = 16
"""Unknown fields of `steering` for which a near one is looked for."""

_NAME = re.compile(r"[\w.:@-]{1,200}")


class _Keys:
    """Field names of a body that are looked at, once each; so many that it would take long are refused."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[bool, bool]] = {}

    def are_certain(self, key: str) -> bool:
        """Whether a key asks for steering wherever it stands, and so is no word of somebody else's."""
        return self._look_at(key)[0]

    def ask(self, key: str) -> bool:
        """Whether a key asks for steering where nobody else fills an object."""
        return self._look_at(key)[1]

    def _look_at(self, key: str) -> tuple[bool, bool]:
        """Raises InvalidRequestError."""
        if key not in self._found:
            if len(self._found) >= MAX_FIELD_NAMES:
                raise InvalidRequestError(
                    f"The body has more than {MAX_FIELD_NAMES} different field names where there are a few dozen.", None
                )
            # our own key would reach the engine unchecked and unsalted
            is_certain = looks_like_steering(key) or key.lower() in (EXTRA_ARGS_KEY, RECORD_KEY, "interventions")
            self._found[key] = is_certain, is_certain or asks_for_steering(key)
        return self._found[key]


def refuse_lookalikes(body: Mapping[str, Any]) -> None:
    """Raise RequestError for a key that asks for steering under another name or in another place."""
    keys = _Keys()
    for key, value in body.items():
        if key == "steering":
            continue
        _refuse_key(key, value, body, keys)
        name = key[:MAX_KEY].lower().replace("-", "_")
        if name == "vllm_xargs":
            _refuse_xargs(value, keys)
        elif name not in USER_DATA and _asks_inside(value, keys, is_passed_on=name in WRAPPERS):
            raise InvalidSteeringError(f"{shown(key)} is not read for steering. {AT_TOP_LEVEL}", key[:MAX_KEY])
        if key in ("messages", "input") and isinstance(value, Sequence):
            _refuse_in_messages(key, value, keys)


def refuse_query(query: bytes) -> None:
    """Raise RequestError for steering in the query of a request's URL."""
    for key, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if asks_for_steering(key):
            hint = f"{_variant_hint(value, {})} " if "variant" in key.lower() else ""
            raise InvalidSteeringError(f"The URL's {shown(key)} is not read. {hint}{AT_TOP_LEVEL}", key[:MAX_KEY])


def asks_for_steering(key: str) -> bool:
    """Whether a key that no request has is one by which someone would ask for steering."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key[:MAX_KEY]).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", name) if word]
    known = {*FOREIGN_KEYS, *MISPLACED_KEYS, *FOREIGN_PHRASES}
    if name in known or "_".join(words) in known or looks_like_steering(key):
        return True
    if any(STEERING_WORDS.fullmatch(word) for word in words):
        return True
    are_features = [bool(FEATURE_WORDS.fullmatch(word)) for word in words]
    return any(are_features) and all(
        is_feature or word in ATTRIBUTE_WORDS for word, is_feature in zip(words, are_features, strict=True)
    )


def _refuse_key(key: str, value: Any, body: Mapping[str, Any], keys: _Keys) -> None:
    path = key[:MAX_KEY]
    if not key.isascii():  # no field has such a name, and some of these letters only look like those of `steering`
        escaped = path.encode("ascii", "backslashreplace").decode()
        raise InvalidSteeringError(f"Unknown field {escaped!r}. Did you mean 'steering'?", escaped)
    owner = FOREIGN_KEYS.get(path.lower())
    if owner is None and looks_like_steering(key):
        raise InvalidSteeringError(f"Unknown field {shown(key)}. Did you mean 'steering'? {AT_TOP_LEVEL}", path)
    if not keys.ask(key) or value is None:
        return
    if "variant" in path.lower():
        raise InvalidSteeringError(f"A top-level {shown(key)} is not understood. {_variant_hint(value, body)}", path)
    said = f"is how {owner} asks for steering" if owner else "is not understood"
    raise InvalidSteeringError(f"A top-level {shown(key)} {said}. {AT_TOP_LEVEL}", path)


def _variant_hint(variant: Any, body: Mapping[str, Any]) -> str:
    model = body.get("model")
    base = model.partition(":")[0] if isinstance(model, str) and model else "<model>"
    name = variant if isinstance(variant, str) and _NAME.fullmatch(variant) else "<variant>"
    return f'A variant is named as the model: "model": "{name if ":" in name else f"{base}:{name}"}".'


def _asks_inside(value: Any, keys: _Keys, is_passed_on: bool) -> bool:
    """Whether an object, or one within it, asks for steering; `is_passed_on` is that of an object nobody else fills."""
    if isinstance(value, str):
        return is_passed_on and '"steering"' in value
    for inner in _objects(value):
        if any(map(keys.are_certain, inner)) or ("op" in inner and not inner.keys().isdisjoint(("feature", "vector"))):
            return True
        if is_passed_on and any(keys.ask(key) and inner[key] is not None for key in inner):
            return True
    return False


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Iterate over the objects within a value; not by recursion: a body may be as deep as the parser allows."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, Mapping):
            yield inner
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner


def _refuse_xargs(xargs: Any, keys: _Keys) -> None:
    for key in xargs if isinstance(xargs, Mapping) else ():
        owner = FOREIGN_XARGS.get(key[:MAX_KEY].lower())
        if keys.ask(key) or owner is not None:
            path = f"vllm_xargs.{key[:MAX_KEY].encode('ascii', 'backslashreplace').decode()}"
            said = f"belongs to {owner}" if owner else "is not read for steering"
            raise InvalidSteeringError(f"{path} {said}. {AT_TOP_LEVEL}", path)


def _refuse_in_messages(key: str, messages: Iterable[Any], keys: _Keys) -> None:
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            continue
        content = message.get("content")
        parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
        if any(keys.are_certain(name) for part in (message, *parts) for name in part):
            raise InvalidSteeringError(f"A message cannot be steered. {AT_TOP_LEVEL}", f"{key}[{number}]")


def refuse_foreign_shapes(steering: Any, body: Mapping[str, Any]) -> None:
    """Raise RequestError for a `steering` that is no object of ours, but has a form that others give it."""
    if isinstance(steering, str):
        raise InvalidSteeringError(_about_string(steering, body), "steering")
    if isinstance(steering, Sequence):
        are_gates = any(isinstance(item, Mapping) and "apply" in item for item in steering)
        owner = " A list of gates is the RhizoNymph fork's." if are_gates else ""
        raise InvalidSteeringError(
            f"'steering' is an object, and a list goes into it as its 'interventions': {EXAMPLE}.{owner}", "steering"
        )
    if isinstance(steering, Mapping) and not steering.keys() & Steering.model_fields.keys():
        _refuse_foreign_object(steering, body)


def _about_string(steering: str, body: Mapping[str, Any]) -> str:
    if steering.lstrip()[:1] in ("{", "["):
        return f"'steering' is an object, not the JSON of one in a string: {EXAMPLE}."
    if _NAME.fullmatch(steering):
        return f"'steering' is an object: {EXAMPLE}. {_variant_hint(steering, body)}"
    return f"'steering' is an object: {EXAMPLE}. A string is saklas's steering expression."


def _refuse_foreign_object(steering: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    if "vectors" in steering or "conflict" in steering:
        raise InvalidSteeringError(f"'vectors' is EasySteer's steering; here it is {EXAMPLE}.", "steering.vectors")
    if "variant" in steering:
        raise InvalidSteeringError(
            f"steering.variant: unknown field. {_variant_hint(steering['variant'], body)}", "steering.variant"
        )
    near = any(did_you_mean(key, Steering.model_fields) for key in islice(steering, MAX_COMPARED_KEYS))
    if not steering or near or not all(isinstance(value, int | float | list) for value in steering.values()):
        return
    whose = "No feature is named by a key" if any("/" in key for key in steering) else "That is another project's"
    raise InvalidSteeringError(
        f"{whose}: a mapping from names to numbers or vectors. Here it is {EXAMPLE}.", "steering"
    )
