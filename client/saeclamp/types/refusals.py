"""The words in which a wrong request is refused: here before anything is sent, and by the server, which imports them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from heapq import nsmallest
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

from saeclamp.types.interventions import A_FEATURE, FEATURE_PATTERN, FeatureIndex, Operation
from saeclamp.types.rules import CHOOSING_THEN, CONDITION_TYPE, CONDITIONS, LastTokens, Rule
from saeclamp.types.steering import Readout, Steering
from saeclamp.types.tokens import TOKEN_OBJECTS

MAX_WORD = 80
"""Characters of a word for which a near one is looked for."""
MAX_NAMES = 256
"""Names that a word is compared with letter by letter; of more, those that hold it, and those of nearly its length."""
MAX_LISTED = 50
"""Names that a message lists."""
MAX_SHOWN = 80
"""Characters of a value that a message shows."""
MIN_PART = 3
"""Characters from which a part of a name stands for the name."""
SURE = 0.8
"""Share of common letters from which a misspelt word is likelier than a part of another."""

A_NAME = "a name is 1 to 64 letters, digits, '_', '.' and '-'"

OPERATIONS: dict[int | str, type[BaseModel]] = {
    model.model_fields["op"].default: model for model in get_args(Operation)
}

PARTS: dict[int | str, type[BaseModel]] = {
    **OPERATIONS,
    **{f"<{key}>": kind for key, kind in {**TOKEN_OBJECTS, **CONDITIONS}.items()},
    "<object>": FeatureIndex,
    "<last_tokens>": LastTokens,
    "rules": Rule,
    "readout": Readout,
    "steering": Steering,
}
"""Objects within `steering`, by how pydantic's locations name them."""


class Refusal(NamedTuple):
    """A sentence, and the JSON path of what it is about, which is empty for the object itself."""

    sentence: str
    path: str

    def __str__(self) -> str:
        return f"{self.path}: {self.sentence}" if self.path else self.sentence


def refusal(exc: ValidationError, value: Any, kind: type[BaseModel], path: str = "") -> Refusal:
    """
    Turn the first of pydantic's errors into a sentence and a JSON path.

    value: what was to be a `kind`
    path:  where it stands
    """
    errors = exc.errors(include_url=False)
    # a misspelt field is reported before the field that is missing because of it
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    return Refusal(_sentence(error, kind), json_path(error["loc"], value, path))


def _sentence(error: Mapping[str, Any], kind: type[BaseModel]) -> str:
    loc = error["loc"]
    if error["type"] == "extra_forbidden":
        key, known = str(loc[-1]), _known_fields(loc, kind)
        of_interventions = {name for model in OPERATIONS.values() for name in model.model_fields}
        if known == [*Steering.model_fields] and key in of_interventions:
            return f"{shown(key)} is a field of each intervention."
        return f"unknown field {shown(key)}.{did_you_mean(key, known)} Known: {', '.join(known)}."
    if error["type"] == "union_tag_invalid":  # of operations: other unions have errors of their own
        asked, known = error.get("input"), [*map(str, OPERATIONS)]
        asked = asked.get("op") if isinstance(asked, Mapping) else asked
        return f"unknown operation {shown(asked)}.{did_you_mean(str(asked), known)} Known: {', '.join(known)}."
    return f"{in_plain_words(error)}."


def _known_fields(loc: tuple[int | str, ...], kind: type[BaseModel]) -> list[str]:
    """Return the fields of the object that `loc` points into: of the innermost one that it names."""
    inner = next((PARTS[part] for part in reversed(loc[:-1]) if part in PARTS), kind)
    return [field.alias or name for name, field in inner.model_fields.items()]


def in_plain_words(error: Mapping[str, Any]) -> str:
    """Say what pydantic found in the words of someone who writes JSON."""
    kind, message, given = error["type"], str(error["msg"]), error.get("input")
    if kind in ("value_error", CONDITION_TYPE):
        return message.removeprefix("Value error, ")
    if kind == "union_tag_not_found" and isinstance(given, Mapping):
        return f"the field 'op' is missing: {', '.join(map(str, OPERATIONS))}"
    if kind in ("union_tag_not_found", "model_attributes_type"):
        from saeclamp.types.steering_mistakes import why_no_intervention  # which reads all types

        # an object of this package was built in Python, and the answer is in Python's words too
        meant = why_no_intervention(given) if isinstance(given, BaseModel) else None
        return meant or f"an intervention is an object with 'op': {', '.join(map(str, OPERATIONS))}"
    if kind == "string_pattern_mismatch" and error["ctx"]["pattern"] != FEATURE_PATTERN:
        return f"{A_NAME}{but_not(given)}"
    if kind == "string_pattern_mismatch":
        return f"{A_FEATURE}{but_not(given)}"
    if kind == "too_short":
        return "the list is empty"
    if kind == "missing" and isinstance(error["loc"][-1], int):
        return f"the list is too short: its item {error['loc'][-1]} is missing"
    if kind == "missing":
        return CHOOSING_THEN if error["loc"][-1:] == ("then",) else "the field is required"
    if kind == "tuple_type" and isinstance(given, str):
        return "a list is needed, not one string"
    # pydantic's own message, or that of the discriminator of one of our unions
    message = message.replace("Tuple", "List").replace("tuple", "list").replace("Input", "The value")
    return f"{message}{but_not(given)}"


def but_not(given: object) -> str:
    """Repeat a wrong value, so that it is found in what was sent; objects and lists are told by their path alone."""
    return f", not {shown(given)}" if given is None or isinstance(given, str | bytes | int | float) else ""


def _is_branch(part: int | str) -> bool:
    """Tell whether a part of a location names a branch of a union, not a field."""
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


def shown(value: object) -> str:
    """Write a value as a message shows it: quoted, and not all of it where it is long."""
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]!r}..."
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def listed(names: Iterable[str], most: int = MAX_LISTED) -> str:
    """Write names as a message lists them; of those beyond `most`, only how many there are."""
    names = [*names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}" or "none"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest known word, or nothing when none is near or it is the very same."""
    near = nearest(word, known)
    return "" if near is None or near == word else f" Did you mean {near!r}?"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """
    Return the word that was misspelt, else the one of which this is a part or an elongation, else a like one.

    `gate` means `golden-gate`, though `games` has more letters in common with it, and `sae` means `sea`, not `space`.
    """
    if len(word) > MAX_WORD:
        return None
    plain, by_lower = word.lower(), {name.lower(): name for name in known}
    if len(by_lower) > MAX_NAMES:
        order = nsmallest(MAX_NAMES, by_lower, lambda name: (plain not in name, abs(len(name) - len(plain))))
        by_lower = {name: by_lower[name] for name in order}
    near = [name for name in by_lower if sorted(name) == sorted(plain)] or get_close_matches(plain, by_lower, 1, SURE)
    near = near or _overlapping(plain, by_lower) or get_close_matches(plain, by_lower, 1)
    return by_lower[near[0]] if near else None


def _overlapping(word: str, names: Iterable[str]) -> list[str]:
    """Find names of which a word is a part, or that are parts of it: whole words between signs before pieces of words."""
    if len(word) < MIN_PART:
        return []
    ranks = {name: rank for name in names if (rank := _rank(word, name)) is not None}
    return sorted(ranks, key=lambda name: (ranks[name], len(name), name))[:1]


def _rank(word: str, name: str) -> int | None:
    if word in _words(name):
        return 0
    if name.startswith(word):
        return 1
    if len(name) >= MIN_PART and name in _words(word):
        return 2
    return 3 if word in name else None


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", name)
