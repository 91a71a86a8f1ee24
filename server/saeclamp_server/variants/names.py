"""Names of variants, as `model` has them."""

from __future__ import annotations

import re
from typing import NamedTuple

from saeclamp.types.variants import VARIANT_NAME

SHOWN = 12
"""Digits of a version that its name shows; fewer are not taken."""
_VERSION = re.compile(rf"[0-9a-f]{{{SHOWN},64}}")


class ModelName(NamedTuple):
    """A model's name in its parts."""

    base: str
    variant: str
    sha256: str | None
    """The version's first digits; None for the one that the name means now."""

    @classmethod
    def parse(cls, model: str) -> ModelName | None:
        """Take a name apart; None where it is no variant's. A base may itself have colons."""
        base, colon, rest = model.rpartition(":")
        variant, at, sha256 = rest.partition("@")
        if not colon or not base or re.fullmatch(VARIANT_NAME.strip("^$"), variant) is None:
            return None
        if at and _VERSION.fullmatch(sha256) is None:
            return None
        return cls(base, variant, sha256 if at else None)

    @property
    def id(self) -> str:
        """Without the version."""
        return f"{self.base}:{self.variant}"


def version_name(base: str, variant: str, sha256: str) -> str:
    """Name a version."""
    return f"{base}:{variant}@{sha256[:SHOWN]}"
