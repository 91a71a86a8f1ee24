"""Names of variants, as requests give them in the field `model`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from saeclamp.types.refusals import nearest
from saeclamp.types.variants import VARIANT_NAME
from saeclamp_server.errors import AliasTakenError

SHOWN = 12
"""Digits of a version's hash that its name shows; fewer are not accepted."""
_VERSION = re.compile(rf"[0-9a-f]{{{SHOWN},64}}")


class ModelName(NamedTuple):
    """A model's name in its parts."""

    base: str
    variant: str
    sha256: str | None
    """First digits of the version's hash; None for the version that the name means now."""

    @classmethod
    def parse(cls, model: str) -> ModelName | None:
        """Parse a name; None where it cannot be a variant's. A base may itself have colons."""
        base, colon, rest = model.rpartition(":")
        variant, at, sha256 = rest.partition("@")
        if not colon or not base or re.fullmatch(VARIANT_NAME.strip("^$"), variant) is None:
            return None
        if at and _VERSION.fullmatch(sha256) is None:
            return None
        return cls(base, variant, sha256 if at else None)

    @property
    def id(self) -> str:
        """Name without the version."""
        return f"{self.base}:{self.variant}"


def is_alias(name: str) -> bool:
    """Tell whether a name can be an alias: of the same form as a variant's own name, so without `:` and `@`."""
    return re.fullmatch(VARIANT_NAME.strip("^$"), name) is not None


def version_name(base: str, variant: str, sha256: str) -> str:
    """Make the full name of a version."""
    return f"{base}:{variant}@{sha256[:SHOWN]}"


def near_name(name: str, bases: Collection[str], variants: Sequence[str]) -> str | None:
    """
    Guess which name of a model or variant was meant; None where none is near.

    Both parts are compared alone: in a long name of a model, a variant's few letters would not count.

    bases:    models
    variants: `<base>:<name>`
    """
    base, colon, variant = name.rpartition(":")
    # reversed, because the dictionaries below keep the last of two with one name, and the first is to count
    variants = [*reversed(variants)]
    if not colon:
        short = {one.rpartition(":")[2]: one for one in variants}
        near = nearest(name, short)
        return nearest(name, bases) or (short[near] if near else None)
    meant = base if base in bases else nearest(base, bases)
    variant = variant.partition("@")[0]
    known = {own: other for one in variants for other, _, own in [one.rpartition(":")] if meant in (None, other)}
    near = variant if variant in known else nearest(variant, known)
    return f"{known[near]}:{near}" if near else None


class NamesInUse(NamedTuple):
    """Names that are taken, at a moment when nobody changes them."""

    names: Collection[tuple[str, str]]
    """Base and name of variants."""
    aliases: Mapping[tuple[str, str], str]
    """Aliases, by base and name."""
    models: Collection[str] = ()
    """Names of models and adapters."""


def refuse_taken_alias(own: tuple[str, str], alias: str | None, in_use: NamesInUse, path: str, name_path: str) -> None:
    """
    Refuse an alias that is in use as a name, and a name that is another variant's alias. Raises AliasTakenError.

    own: base and name of the variant
    """
    if alias is not None:
        if alias in in_use.models:
            raise AliasTakenError(alias, "a model's name", path)
        other = next((f"{base}:{name}" for base, name in in_use.names if name == alias and (base, name) != own), None)
        if other is not None:
            raise AliasTakenError(alias, f"the name of {other}", path)
    of = next((key for key, one in in_use.aliases.items() if one == own[1] and key != own), None)
    if of is not None:
        raise AliasTakenError(own[1], f"the alias of {':'.join(of)}", name_path)
