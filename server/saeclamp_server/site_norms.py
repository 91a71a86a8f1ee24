"""Norms of the residual stream and of decoder rows, and how an SAE fits, as measured in the running engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class SiteNorms:
    """Norms where an SAE writes (first), as measured in the running engine."""

    median_resid_norm: float | None
    """Median norm of the residual stream's vectors, sinks excluded; None where too few tokens were ordinary."""
    row_norms: Sequence[float]
    """Per feature: norm of what one unit of activation adds, at a token of the median scale."""
    of_resid: bool = True
    """True if it is the stream that is measured; else, where that is not at hand, the vector at the site."""

    @property
    def rounded_resid_norm(self) -> float | None:
        """`median_resid_norm` to four digits, the same at every start, as it is shown and as doses are measured by it."""
        return None if self.median_resid_norm is None else rounded(self.median_resid_norm)


class QuickCheckResult(NamedTuple):
    """Measurements of an SAE, or of a vector bank."""

    norms: SiteNorms
    """Norms by which edits are measured."""
    fit: Mapping[str, Any] | None
    """Fit of an SAE: the fields of `evaluation.quick_check.QuickFit`; None for a vector bank."""


NOISE = 1e-5
"""Share by which a norm may differ from start to start. Another ulp of one token's norm is a hundredth of it."""

Rounding = Callable[[float], float]


def rounded(length: float) -> float:
    """Round to four significant digits, so that what is measured again, an ulp off, gives the same edits."""
    return float(f"{length:.4g}")


def rounded_other_way(length: float) -> float:
    """Round a norm that is as near to two such values as noise is to the one that `rounded` does not give."""
    near = {rounded(length * (1 - NOISE)), rounded(length * (1 + NOISE))} - {rounded(length)}
    return near.pop() if near else rounded(length)
