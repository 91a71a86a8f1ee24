"""Configurations beside weights, in JSON or YAML: read with bounds, because whoever wrote the weights wrote them too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.tensors import open_regular

MAX_CONFIG_BYTES = 16 << 20
MAX_YAML_BYTES = 1 << 20
"""Bound on YAML, of which PyYAML reads a megabyte in some seconds."""
MAX_VALUES = 1 << 21
"""Bound on values, with every alias written out: nine lines of YAML can stand for a billion."""

YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""Exceptions of PyYAML: its own, and those of the conversions a tag asks for (`!!int ""` is an IndexError)."""


def read_config(path: Path) -> dict[str, Any]:
    """
    Read a JSON or YAML object. A number that is not finite, or takes more than 64 bits, counts as not given (None).

    Raises CheckpointError.
    """
    is_yaml = path.suffix in (".yaml", ".yml")
    with open_regular(path) as file:
        content = file.read(MAX_CONFIG_BYTES + 1)
    if len(content) > (MAX_YAML_BYTES if is_yaml else MAX_CONFIG_BYTES):
        raise CheckpointError(f"{path} is too large for a configuration.")
    value = _parse_yaml(path, content) if is_yaml else _parse_json(path, content)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a {'mapping' if is_yaml else 'JSON object'}.")
    _drop_impossible_numbers(path, value)
    return value


def _parse_json(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as exc:  # ValueError: of JSON, of UTF-8, of a number with 5,000 digits
        raise CheckpointError(f"{path} is not readable JSON: {exc}.") from exc


def _parse_yaml(path: Path, content: bytes) -> Any:
    try:
        return yaml.load(content.decode("utf-8"), _PlainLoader)  # a SafeLoader: no objects
    except YAML_ERRORS as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(exc, "problem", None) or type(exc).__name__
        raise CheckpointError(f"{path} is not readable YAML{where}: {problem}.") from exc


class _PlainLoader(yaml.SafeLoader):
    """YAML without merge keys, which copy: nested ones take exponential time before anything could count the values."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse merge keys, whose mappings the base class would copy."""
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "merge keys (<<) are not read", key.start_mark)


def _drop_impossible_numbers(path: Path, config: dict[str, Any]) -> None:
    # a stack and no recursion: a YAML alias may lead back into its own container, which ends at MAX_VALUES
    waiting: list[Any] = [config]
    num_values = 0
    while waiting:
        container = waiting.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        num_values += len(container)
        if num_values > MAX_VALUES:
            raise CheckpointError(f"{path} holds more values than a configuration.")
        for key, value in list(items):
            if isinstance(value, dict | list):
                waiting.append(value)
            elif isinstance(value, tuple | set):
                raise CheckpointError(f"{path} holds a {type(value).__name__}, which no configuration needs.")
            elif is_unrepresentable(value):
                container[key] = None


def is_unrepresentable(value: Any) -> bool:
    """Tell whether a number is NaN, infinite, or too large for 64 bits."""
    return value.bit_length() > 63 if isinstance(value, int) else isinstance(value, float) and not math.isfinite(value)
