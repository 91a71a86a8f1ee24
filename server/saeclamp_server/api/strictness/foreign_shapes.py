"""
Bodies that ask for steering under another name, in another place or in another form.

vLLM's request classes ignore unknown keys, so each of these would be answered unsteered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from saeclamp.types import MAX_KEY, Steering, looks_like_steering
from saeclamp.types.refusals import did_you_mean, shown
from saeclamp_server.api.strictness.foreign_keys import FOREIGN_KEYS, SteeringKeys, plain
from saeclamp_server.api.strictness.request_fields import MESSAGE_FIELDS, made_up_fields
from saeclamp_server.errors import InvalidRequestError, InvalidSteeringError
from saeclamp_server.steering.program import EXTRA_ARGS_KEY, RECORD_KEY

EXAMPLE = '"steering": {"interventions": [{"op": "clamp", "feature": "<sae>/<name or index>", "value": 1}]}'

AT_TOP_LEVEL = f"Steering is an object at the top level of the request, with a list 'interventions': {EXAMPLE}."

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

MESSAGE_LISTS = ("messages", "input", "previous_input_messages")
"""Fields that hold messages."""

FOREIGN_XARGS = {
    EXTRA_ARGS_KEY: "this server's own engine",
    RECORD_KEY: "this server's own engine",
    "hotwire": "hotwire",
    "apply_steering_vectors": "vllm-lens",
    "apply_hooks": "vllm-lens",
}

MAX_COMPARED_KEYS = 16
"""Unknown fields of `steering` for which a near one is looked for."""

_NAME = re.compile(r"[\w.:@-]{1,200}")


def refuse_lookalikes(body: Mapping[str, Any], path: str = "") -> None:
    """
    Raise RequestError for a key that asks for steering under another name or in another place.

    path: of the endpoint, which says what fields hold what users make up; "" for any
    """
    keys, made_up = SteeringKeys(), made_up_fields(path)
    refuse_long_names(body)
    for key, value in body.items():
        if key == "steering":
            continue
        _refuse_key(key, value, body, keys)
        name = plain(key)
        if name == "vllm_xargs":
            _refuse_xargs(value, keys)
        elif name not in made_up and _asks_inside(value, keys, is_passed_on=name in WRAPPERS):
            raise InvalidSteeringError(f"{shown(key)} is not read for steering. {AT_TOP_LEVEL}", key)
    _refuse_in_messages(body, keys)
    for where, inner in wrapped(body):
        odd = next((key for key in inner if "/" in key), None)
        if odd is not None:
            raise InvalidSteeringError(f"{shown(f'{where}.{odd[:MAX_KEY]}')} is not read. {AT_TOP_LEVEL}", where)


def refuse_long_names(names: Iterable[str]) -> None:
    """Raise RequestError for a field's name that is longer than any, before it is compared or shown."""
    longest = max(names, key=len, default="")
    if len(longest) > MAX_KEY:
        raise InvalidRequestError(f"The name of a field has {len(longest)} characters: {shown(longest)}.", None)


def _refuse_key(key: str, value: Any, body: Mapping[str, Any], keys: SteeringKeys) -> None:
    if not key.isascii():  # no field has such a name, and some of these letters only look like those of `steering`
        escaped = key.encode("ascii", "backslashreplace").decode()
        raise InvalidSteeringError(f"Unknown field {escaped!r}. Did you mean 'steering'?", escaped)
    owner = FOREIGN_KEYS.get(key.lower())
    if owner is None and looks_like_steering(key):
        raise InvalidSteeringError(f"Unknown field {shown(key)}. Did you mean 'steering'? {AT_TOP_LEVEL}", key)
    if value is None or not (keys.ask(key) or "/" in key):  # features are named with a slash, and fields never
        return
    if "variant" in key.lower():
        raise InvalidSteeringError(f"A top-level {shown(key)} is not understood. {variant_hint(value, body)}", key)
    said = f"is how {owner} asks for steering" if owner else "is not understood"
    raise InvalidSteeringError(f"A top-level {shown(key)} {said}. {AT_TOP_LEVEL}", key)


def variant_hint(variant: Any, body: Mapping[str, Any]) -> str:
    """Say how a variant is asked for, with the names of the request where it has some."""
    model = body.get("model")
    base = model.partition(":")[0] if isinstance(model, str) and model else "<model>"
    name = variant if isinstance(variant, str) and _NAME.fullmatch(variant) else "<variant>"
    return f'A variant is named as the model: "model": "{name if ":" in name else f"{base}:{name}"}".'


def wrapped(body: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Iterate over the objects of a body in which clients wrap what they want passed on, and those in them."""
    waiting = [("", body)]
    while waiting:
        path, outer = waiting.pop()
        for key, inner in outer.items():
            if isinstance(inner, Mapping) and plain(key) in (*WRAPPERS, "vllm_xargs"):
                where = f"{path}.{key}".removeprefix(".")
                yield where, inner
                waiting.append((where, inner))


def messages_in(body: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Iterate over a body's messages and their paths, those of batches too."""
    for field in MESSAGE_LISTS:
        value = body.get(field)
        for number, message in enumerate(value if isinstance(value, list) else ()):
            for inner in message if isinstance(message, list) else (message,):
                if isinstance(inner, Mapping):
                    yield f"{field}[{number}]", inner


def _asks_inside(value: Any, keys: SteeringKeys, is_passed_on: bool) -> bool:
    """Tell whether an object, or one within it, asks for steering; `is_passed_on` is true of one that nobody else fills."""
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


def _refuse_xargs(xargs: Any, keys: SteeringKeys) -> None:
    for key in xargs if isinstance(xargs, Mapping) else ():
        owner = FOREIGN_XARGS.get(key[:MAX_KEY].lower())
        if keys.ask(key) or owner is not None:
            path = f"vllm_xargs.{key[:MAX_KEY].encode('ascii', 'backslashreplace').decode()}"
            said = f"belongs to {owner}" if owner else "is not read for steering"
            raise InvalidSteeringError(f"{path} {said}. {AT_TOP_LEVEL}", path)


def _refuse_in_messages(body: Mapping[str, Any], keys: SteeringKeys) -> None:
    for path, message in messages_in(body):
        asking = next(
            (key for key in message.keys() - MESSAGE_FIELDS if _asks_in_message(key, message[key], keys)), None
        )
        content = message.get("content")
        parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
        if asking is not None or any(keys.are_certain(name) for part in parts for name in part):
            is_variant = asking is not None and "variant" in asking[:MAX_KEY].lower()
            hint = f"{variant_hint(message[asking], body)} " if asking is not None and is_variant else ""
            raise InvalidSteeringError(f"A message cannot be steered. {hint}{AT_TOP_LEVEL}", path)


def _asks_in_message(key: str, value: Any, keys: SteeringKeys) -> bool:
    if keys.are_certain(key):
        return True
    if value is None:
        return False
    is_odd = not key.isascii() or "/" in key
    return is_odd or keys.ask(key) or _asks_inside(value, keys, is_passed_on=plain(key) in WRAPPERS)


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
        return f"'steering' is an object: {EXAMPLE}. {variant_hint(steering, body)}"
    return f"'steering' is an object: {EXAMPLE}. A string is saklas's steering expression."


def _refuse_foreign_object(steering: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    if "vectors" in steering or "conflict" in steering:
        raise InvalidSteeringError(f"'vectors' is EasySteer's steering; here it is {EXAMPLE}.", "steering.vectors")
    if "variant" in steering:
        raise InvalidSteeringError(
            f"steering.variant: unknown field. {variant_hint(steering['variant'], body)}", "steering.variant"
        )
    near = any(did_you_mean(key, Steering.model_fields) for key in islice(steering, MAX_COMPARED_KEYS))
    if not steering or near or not all(isinstance(value, int | float | list) for value in steering.values()):
        return
    whose = "No feature is named by a key" if any("/" in key for key in steering) else "That is another project's"
    raise InvalidSteeringError(
        f"{whose}: a mapping from names to numbers or vectors. Here it is {EXAMPLE}.", "steering"
    )
