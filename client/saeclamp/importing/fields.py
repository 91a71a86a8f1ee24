"""Reading fields of other projects, and refusing them by their place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from saeclamp._exceptions import InvalidArgumentError
from saeclamp.types.refusals import did_you_mean

T = TypeVar("T")


class ForeignSteeringError(InvalidArgumentError):
    """Steering that was written for another project cannot be said here. The message and `param` name the place."""


def refused(path: str, why: str) -> ForeignSteeringError:
    """Make the error for a field."""
    return ForeignSteeringError(f"{path}: {why}" if path else why, path or None)


def join(path: str, name: str) -> str:
    """Write the path of a field of the object at `path`."""
    return f"{path}.{name}" if path else name


def check_fields(item: Mapping[str, Any], known: Collection[str], path: str) -> None:
    """Refuse fields that are not known, unless they are null."""
    for name, value in item.items():
        if name not in known and value is not None:
            raise refused(
                join(path, str(name)),
                f"this field is not known.{did_you_mean(str(name), known)} Leave it out if it does not steer.",
            )


def refuse_set(item: Mapping[str, Any], names: Iterable[str], path: str, why: str) -> None:
    """Refuse fields that have no equal where they are set to anything."""
    for name in names:
        if item.get(name):
            raise refused(join(path, name), why)


def objects(item: Mapping[str, Any], name: str, path: str = "") -> Sequence[Mapping[str, Any]]:
    """Read a list of objects; none where the field is not there."""
    value = item.get(name) or []
    is_list = isinstance(value, Iterable) and not isinstance(value, str | Mapping)
    if not is_list or not all(isinstance(one, Mapping) for one in value):
        raise refused(join(path, name), "a list of objects is needed.")
    return [*value]


def mapping(item: Mapping[str, Any], name: str, path: str = "") -> Mapping[str, Any]:
    """Read an object; an empty one where the field is not there."""
    value = item.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise refused(join(path, name), "an object is needed.")
    return value


def number(item: Mapping[str, Any], name: str, path: str) -> float:
    """Read a finite number."""
    value = item.get(name)
    try:
        parsed = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        parsed = math.nan
    if not math.isfinite(parsed):
        raise refused(join(path, name), f"a number is needed, not {_shown(value)}.")
    return parsed


def index(item: Mapping[str, Any], name: str, path: str) -> int:
    """Read a feature's number, which may be written as text."""
    value = item.get(name)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    text = str(value).strip() if is_number or isinstance(value, str) else ""
    if not (text.isascii() and text.isdecimal()):
        raise refused(join(path, name), f"a feature's number is needed, not {_shown(value)}.")
    return int(text)


def build(kind: Callable[..., T], path: str, **fields: Any) -> T:
    """Build one of our objects of what stands at `path`, and name that place where it cannot be."""
    try:
        return kind(**fields)
    except InvalidArgumentError as exc:
        raise refused(path, str(exc)) from None


def _shown(value: object) -> str:
    return json.dumps(value, default=repr)[:80]
