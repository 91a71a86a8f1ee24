"""
From a request's JSON body to a `Steering`, or a refusal that names the place.

vLLM's request classes ignore unknown keys, so a misspelt `steering` would be served unsteered. Everything here exists
so that a body which looks as if it asked for steering either gets it or is refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from saeclamp.types import CONDITIONS, MAX_KEY, Steering
from saeclamp.types.refusals import PARTS, refusal, shown
from saeclamp_server.api.strictness.foreign_keys import FOREIGN_KEYS
from saeclamp_server.api.strictness.foreign_shapes import (
    WRAPPERS,
    refuse_foreign_shapes,
    refuse_long_names,
    refuse_lookalikes,
)
from saeclamp_server.errors import InvalidRequestError, InvalidSteeringError

MAX_FIELDS = 10_000
"""Fields of `steering` and of all within it: more than 64 interventions and 16 rules can have."""

_OF_STEERING = {"steering", *Steering.model_fields}.union(*(kind.model_fields for kind in PARTS.values()), CONDITIONS)
"""Fields of `steering` and of all within it."""

_STEERS = {"model", "variant", "vllm_xargs", "extraBody", "providerOptions", *_OF_STEERING, *WRAPPERS, *FOREIGN_KEYS}
"""Fields of which nobody has two by mistake: the last would take back what the first asks for."""

MAX_VALUES = 1 << 20
"""Values in a body for vLLM, which reads them one by one while nobody else is answered; longer prompts than any model's."""
MAX_OBJECTS = 20_000
"""Objects in a body for vLLM: it takes far longer to check a message, or a part of one, than to read it."""


def parse_body(content: bytes, max_fields: int | None = None) -> Any:
    """
    Parse JSON, refusing a field that is given twice: any of the body's own, and deeper those that steer, or wrap what does.

    Python keeps the last of two equal keys, so a trailing `"steering": null` would switch the steering off, a trailing
    `"model"` a variant, and a trailing `"rules": []` a rule. Raises RequestError or ValueError.

    max_fields: of one object, whose names are no longer than any field's; None for bodies that vLLM reads too
    """
    doubled: list[str] = []  # of the object that was read last, which in the end is the outermost
    num_objects = 0
    has_infinite = False

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal num_objects
        num_objects += 1
        if max_fields is not None:
            _refuse_large(pairs, max_fields)
        elif num_objects > MAX_OBJECTS:
            raise InvalidRequestError(
                f"The body has more than {MAX_OBJECTS} objects, which is all that are read.", None
            )
        parsed = dict(pairs)
        doubled.clear()
        if len(parsed) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            doubled.extend(key for key, count in counts.items() if count > 1)
            steers = next((key for key in doubled if key in _STEERS), None)
            if steers is not None:
                raise InvalidSteeringError(
                    f"The field {steers!r} is given twice.", "steering" if steers in _OF_STEERING else steers
                )
        return parsed

    def number(text: str) -> float:
        nonlocal has_infinite
        value = float(text)
        has_infinite |= not math.isfinite(value)
        return value

    check_encoding(content)
    if max_fields is None:
        refuse_many_values(content)
    try:
        value = json.loads(content, object_pairs_hook=once, parse_float=number, parse_constant=number)
        # half of a pair passes the parser as an escape, and breaks whoever writes it later
        if b"\\ud" in content.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("The body has half of a surrogate pair, which is no text.", None) from None
    except RecursionError:
        raise InvalidRequestError("The body is nested too deeply.", None) from None
    if isinstance(value, dict) and doubled:
        refuse_long_names(value)
        raise InvalidRequestError(f"The field {shown(doubled[0])} is given twice.", doubled[0])
    if isinstance(value, dict) and has_infinite:
        _refuse_infinite(value)
    return value


def _refuse_large(pairs: Sequence[tuple[str, Any]], max_fields: int) -> None:
    if len(pairs) > max_fields:
        raise InvalidRequestError(
            f"An object of the body has {len(pairs)} fields; at most {max_fields} are read.", None
        )
    refuse_long_names(key for key, _ in pairs)


def refuse_many_values(content: bytes) -> None:
    """Raise RequestError for a body of more values than are read, before it is parsed."""
    num = content.count(b",")
    if num > MAX_VALUES:
        raise InvalidRequestError(
            f"The body has {num} commas, and may have as many values: at most {MAX_VALUES} are read.", None
        )


def check_encoding(content: bytes, content_encoding: str = "identity") -> None:
    """Raise RequestError unless a body is text in UTF-8, as it was written: some parsers would guess, and others not."""
    if content_encoding.strip().lower() not in ("", "identity") or content.startswith(b"\x1f\x8b"):
        raise InvalidRequestError("The body is compressed; send it as it is, without Content-Encoding.", None)
    if content.startswith(b"\xef\xbb\xbf"):
        raise InvalidRequestError("The body begins with a byte order mark; send plain UTF-8, which needs none.", None)
    if b"\x00" in content[:4] or content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InvalidRequestError("The body is in UTF-16 or UTF-32; JSON is sent in UTF-8.", None)
    try:
        content.decode()
    except UnicodeDecodeError as exc:
        raise InvalidRequestError(f"The body is not UTF-8: its byte {exc.start} begins no letter.", None) from None


def _refuse_infinite(body: Mapping[str, Any]) -> None:
    """Raise RequestError for a number that is none, outside of `steering`, which says more about its own."""
    # paths are written of what holds something alone: a prompt of token ids may have millions of entries
    waiting: list[tuple[str, Any]] = [("", {key: value for key, value in body.items() if key != "steering"})]
    while waiting:
        path, holder = waiting.pop()
        for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
            is_infinite = isinstance(value, float) and not math.isfinite(value)
            if is_infinite or isinstance(value, dict | list):
                where = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}".removeprefix(".")
                if is_infinite:
                    raise InvalidRequestError(f"{where}: {value} is no number that JSON or a model knows.", where)
                waiting.append((where, value))


def steering_of(body: Any, path: str = "") -> Steering | None:
    """
    Return the request's `steering`, None when the body asks for none. Raises RequestError.

    path: of the endpoint; "" for any
    """
    if not isinstance(body, Mapping):
        return None
    refuse_lookalikes(body, path)
    steering = body.get("steering")
    if steering is None:
        return None
    _refuse_many_fields(steering)
    refuse_foreign_shapes(steering, body)
    try:
        return Steering.model_validate(steering)
    except ValidationError as exc:
        why = refusal(exc, steering, Steering, "steering")
        raise InvalidSteeringError(str(why), why.path) from None


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
