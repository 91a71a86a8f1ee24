"""A seam, and how the source of a vLLM is held against it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from saeclamp_server.vllm_seams.source import Definition, Module, Package, Signature


@dataclass(frozen=True)
class Seam:
    """All that is leaned on of one of vLLM's modules."""

    module: str | tuple[str, ...]
    """Its name; where versions differ, the names that it has had."""
    names: str = ""
    """Names that are imported."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """Attributes and methods of classes, whatever their parameters."""
    calls: Sequence[str] = ()
    """Functions that are called, with the parameters that are given, as `Class.method(by_place, *, by_name)`."""
    overrides: Sequence[str] = ()
    """
    Functions in whose place ours are called, with all parameters that these take.

    With `*args` and `**kwargs` they pass on what else comes.
    """
    types: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Annotations of attributes whose types have differed: each is handled."""


def find_moved(seams: Iterable[Seam], package: Package) -> Iterator[str]:
    """Name what of the seams is not in a vLLM: a clause for each."""
    for seam in seams:
        modules = (seam.module,) if isinstance(seam.module, str) else seam.module
        module = next(filter(None, map(package.module, modules)), None)
        if module is None:
            yield f"{modules[0]} is gone"
        else:
            yield from dict.fromkeys(_find_moved_in(seam, module))


def _find_moved_in(seam: Seam, module: Module) -> Iterator[str]:
    for name in seam.names.split():
        yield from _Name(module, name).missing()
    for owner, attributes in seam.reads.items():
        for attribute in attributes.split():
            yield from _Name(module, f"{owner}.{attribute}").missing()
    for text in (*seam.calls, *seam.overrides):
        name, parameters = _parse(text)
        found = _Name(module, name)
        yield from found.missing()
        signature = found.signature()
        if signature is not None:
            differences = _of_override if text in seam.overrides else _of_call
            yield from (f"{name} {difference}" for difference in differences(parameters, signature))
    for name, types in seam.types.items():
        found = _Name(module, name)
        yield from found.missing()
        if isinstance(found.definition, ast.expr) and ast.unparse(found.definition) not in types:
            yield f"{name} is {ast.unparse(found.definition)}"


class _Name:
    """A name of a module, looked up."""

    def __init__(self, module: Module, name: str) -> None:
        owner, _, attribute = name.partition(".")
        self._name, self._of = name, owner if attribute else module.name
        self._module = module
        self.definition: Definition = None
        found = module.find(owner)
        self._is_there = found is not None
        if found is None and attribute:
            self._name, self._of = owner, module.name
        if found is None:
            return
        self._module, self.definition = found
        # of what is no class here, such as another package's, no more is known
        if attribute and isinstance(self.definition, ast.ClassDef):
            members = module.package.members(self._module, self.definition)
            self._is_there = attribute in members
            self.definition = members.get(attribute)

    def missing(self) -> Iterator[str]:
        if not self._is_there:
            yield f"{self._of} has no {self._name.rpartition('.')[2]}"

    def signature(self) -> Signature | None:
        return self._module.package.signature(self._module, self.definition) if self._is_there else None


def _parse(text: str) -> tuple[str, Signature]:
    name, _, parameters = text.partition("(")
    (function,) = ast.parse(f"def f({parameters}: ...").body
    assert isinstance(function, ast.FunctionDef)
    return name, Signature.of(function.args, is_bound=False)


def _of_call(given: Signature, theirs: Signature) -> Iterator[str]:
    """Say why a call with these parameters would fail."""
    for place, name in enumerate(given.positional):
        if name not in theirs.positional and not theirs.takes_any_place:
            yield f"has no parameter `{name}`"
        elif name in theirs.positional and theirs.positional.index(name) != place:
            yield f"has its parameter `{name}` elsewhere"
    for name in given.keyword_only:
        if name not in (*theirs.positional, *theirs.keyword_only) and not theirs.takes_any_name:
            yield f"has no parameter `{name}`"
    for name in theirs.required - {*given.positional, *given.keyword_only}:
        if not (given.takes_any_place or given.takes_any_name):
            yield f"needs the parameter `{name}`"


def _of_override(ours: Signature, theirs: Signature) -> Iterator[str]:
    """Say why a function with our parameters could not stand for theirs."""
    for place, name in enumerate(ours.positional):
        if name not in (*theirs.positional, *theirs.keyword_only):
            yield f"has no parameter `{name}`"
        elif theirs.positional[place : place + 1] != (name,):
            yield f"has its parameter `{name}` elsewhere"
    for name in ours.keyword_only:
        if name not in (*theirs.positional, *theirs.keyword_only):
            yield f"has no parameter `{name}`"
    for name in theirs.positional[len(ours.positional) :]:
        if not ours.takes_any_place and name not in (*ours.positional, *ours.keyword_only):
            yield f"has the new parameter `{name}`"
    for name in theirs.keyword_only:
        if not ours.takes_any_name and name not in ours.keyword_only:
            yield f"has the new parameter `{name}`"
