"""Names of product code: one thing has one name, one name means one thing, and docstrings say what things are."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("client/saeclamp", "sae_models/saeclamp_saes", "server/saeclamp_server")
GENERATED = ROOT / "client" / "saeclamp" / "_sync"

PAIRS = {
    "Example": "a row of labels, and what the wire shows of it",
    "LabelsInfo": "what a file of labels says of itself, and what the wire shows of it",
    "Neighbour": "a row of labels, and what the wire shows of it",
    "TokenLogit": "a row of labels, and what the wire shows of it",
    "_TabularOnlyForTypes": "one for type checkers, and one that is there when the code runs",
}
"""Classes that two files define, and why."""

FRAGMENTS = {"Of", "What", "Which", "Where", "Whether", "How", "By", "That", "Beside"}
"""First words of docstrings that do not name what they are of."""

PRIVATE = {
    *(
        "held",
        "holding",
        "place",
        "placed",
        "places",
        "reading",
        "readings",
        "looks",
        "telling",
        "told",
        "said",
        "live",
    ),
    *("known", "findable", "beside", "elsewhere", "everywhere", "otherwise", "wanted", "trying", "board", "ledger"),
    *("firings", "tally", "bank", "settle", "meanings", "figures", "lengths", "dictionary", "moves", "visible", "fit"),
    *("assembly", "announcement", "guard", "seeds", "doses", "words", "adding", "asking", "measuring", "watching"),
    *("filling", "mapping", "stages", "probe", "directions", "slots", "own_route", "own_server", "asked_model"),
}
"""Module names that say nothing to somebody who knows vLLM and SAELens."""
PARTICIPLES = ("ing", "ed", "ly")
NOUNS = {
    "clamping",
    "editing",
    "importing",
    "labelling",
    "learning",
    "screening",
    "steering",
    "streaming",
    "training",
} | {
    "unsupported"  # formats
}
"""Last words of modules' names that end like adverbs or participles, and are words of the field."""


def modules() -> list[Path]:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [path for path in files if GENERATED not in path.parents]


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Find docstrings, those of attributes too: strings that stand alone."""
    for node in ast.walk(tree):
        for part in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            if (
                isinstance(part, ast.Expr)
                and isinstance(part.value, ast.Constant)
                and isinstance(part.value.value, str)
            ):
                yield part.lineno, part.value.value


def test_no_two_classes_have_one_name_but_for_known_pairs() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    twice = {name: places for name, places in found.items() if len(places) > 1}
    assert {name: places for name, places in twice.items() if name not in PAIRS} == {}
    assert twice.keys() == PAIRS.keys(), "a pair that is none any more leaves the list"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_docstring_begins_as_a_riddle(package: str) -> None:
    riddles = [
        f"{path.relative_to(ROOT)}:{line}: {' '.join(words[:8])}"
        for path in modules()
        if path.is_relative_to(ROOT / package)
        for line, text in docstrings(ast.parse(path.read_text()))
        if (words := text.split()) and words[0].strip(",.:;") in FRAGMENTS
    ]
    assert riddles == []


def test_modules_are_named_with_nouns_of_the_field() -> None:
    names = {path.stem if path.stem != "__init__" else path.parent.name: path.relative_to(ROOT) for path in modules()}
    plain = {name.strip("_"): path for name, path in names.items()}
    assert {name: str(path) for name, path in plain.items() if name in PRIVATE} == {}
    ending = {
        name: str(path)
        for name, path in plain.items()
        if name.endswith(PARTICIPLES) and name.rpartition("_")[2] not in NOUNS
    }
    assert ending == {}
