"""The names and signatures of a package, read off its source: importing vLLM takes seconds, and parts of it need a GPU."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TypeAlias

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Definition: TypeAlias = Function | ast.ClassDef | ast.expr | None
"""The thing behind a name: a function, a class, the type that it is annotated with; None where it is not known further."""


@dataclass(frozen=True)
class Signature:
    """Parameters of a function, without `self`."""

    positional: tuple[str, ...]
    """Those that can be given by their place."""
    keyword_only: tuple[str, ...]
    required: frozenset[str]
    takes_any_place: bool
    """True for `*args`."""
    takes_any_name: bool
    """True for `**kwargs`."""

    @classmethod
    def of(cls, arguments: ast.arguments, is_bound: bool) -> Signature:
        """`is_bound` leaves the first parameter out."""
        every = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
        positional = every[is_bound:]
        keywords = [argument.arg for argument in arguments.kwonlyargs]
        with_default = [*every[len(every) - len(arguments.defaults) :]] if arguments.defaults else []
        with_default += [name for name, value in zip(keywords, arguments.kw_defaults, strict=True) if value is not None]
        return cls(
            tuple(positional),
            tuple(keywords),
            frozenset({*positional, *keywords} - {*with_default}),
            arguments.vararg is not None,
            arguments.kwarg is not None,
        )


class Module:
    """One file of the package."""

    def __init__(self, package: Package, name: str, path: Path) -> None:
        self.package, self.name, self._path = package, name, path

    @cached_property
    def _statements(self) -> list[ast.stmt]:
        return [*_statements(ast.parse(self._path.read_bytes()).body)]

    @cached_property
    def _names(self) -> dict[str, ast.stmt]:
        return {name: statement for statement in self._statements for name in _bound_names(statement)}

    def find(self, name: str) -> tuple[Module, Definition] | None:
        """Find what a name of the module stands for, and where it is defined; None where there is no such name."""
        statement = self._names.get(name)
        if isinstance(statement, ast.ImportFrom):
            source = self.package.module(self._absolute(statement))
            (alias,) = [one for one in statement.names if (one.asname or one.name) == name]
            # what comes from another package is not looked into
            return (source and source.find(alias.name)) or (self, None)
        if statement is not None:
            return self, _definition(statement)
        submodule = self.package.module(f"{self.name}.{name}")
        if submodule is not None:
            return submodule, None
        return self._find_in_star_imports(name)

    def _find_in_star_imports(self, name: str) -> tuple[Module, Definition] | None:
        for statement in self._statements:
            if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
                source = self.package.module(self._absolute(statement))
                found = source and source.find(name)
                if found:
                    return found
        return None

    def _absolute(self, statement: ast.ImportFrom) -> str:
        """Return the name of the module from which is imported."""
        if not statement.level:
            return statement.module or ""
        parts = self.name.split(".")
        here = parts[: len(parts) - statement.level + (self._path.name == "__init__.py")]
        return ".".join([*here, *([statement.module] if statement.module else [])])


class Package:
    """A package, by its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.module = cache(self._module)
        """Look up a module by its full name; None where there is none."""
        self.members = cache(self._members)
        """Return what a class and those of its bases that are in the package define, also on instances."""

    def _module(self, name: str) -> Module | None:
        first, *rest = name.split(".")
        if first != self._folder.name:
            return None
        place = self._folder.joinpath(*rest)
        paths = (place / "__init__.py", place.with_suffix(".py")) if rest else (place / "__init__.py",)
        return next((Module(self, name, path) for path in paths if path.exists()), None)

    def _members(self, module: Module, kind: ast.ClassDef) -> dict[str, Definition]:
        members: dict[str, Definition] = {}
        for base in reversed(kind.bases):
            found = module.find(base.id) if isinstance(base, ast.Name) else None
            if found and isinstance(found[1], ast.ClassDef):
                members |= self.members(found[0], found[1])
        on_instances: dict[str, Definition] = {}
        for statement in _statements(kind.body):
            members |= dict.fromkeys(_bound_names(statement), _definition(statement))
            if isinstance(statement, Function):
                on_instances |= {name: found for name, found in _of_self(statement) if name not in members}
        return on_instances | members

    def signature(self, module: Module, definition: Definition) -> Signature | None:
        """Return the parameters of a function, or of a class when it is called; None where they are not known."""
        if isinstance(definition, Function):
            arguments = definition.args
            first = [*arguments.posonlyargs, *arguments.args][:1]
            return Signature.of(arguments, bool(first) and first[0].arg in ("self", "cls"))
        if not isinstance(definition, ast.ClassDef):
            return None
        members = self.members(module, definition)
        if "__init__" in members:
            return self.signature(module, members["__init__"])
        # a dataclass, a struct or a tuple: its annotated fields are its parameters; defaults are not looked at
        fields = tuple(name for name, found in members.items() if isinstance(found, ast.expr))
        return Signature(fields, (), frozenset(), False, False) if fields else None


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Walk statements, also below conditions, as of the platform or of type checking."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try | ast.With):
            yield from _statements(statement.body)
            yield from _statements(getattr(statement, "orelse", []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)
        else:
            yield statement


def _bound_names(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [statement.name]
        case ast.Import() | ast.ImportFrom():
            return [alias.asname or alias.name.partition(".")[0] for alias in statement.names if alias.name != "*"]
        case ast.Assign():
            targets = [part for target in statement.targets for part in getattr(target, "elts", [target])]
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _definition(statement: ast.stmt) -> Definition:
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return statement
        case ast.AnnAssign():
            return statement.annotation
    return None


def _of_self(method: Function) -> Iterator[tuple[str, Definition]]:
    """Find the attributes that a method sets on its object, with their annotated types."""
    for node in ast.walk(method):
        targets = []
        if isinstance(node, ast.Assign):
            targets = [part for target in node.targets for part in getattr(target, "elts", [target])]
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                yield target.attr, node.annotation if isinstance(node, ast.AnnAssign) else None
