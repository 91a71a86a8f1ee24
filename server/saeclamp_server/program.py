"""What one request does to the residual stream: resolved, in the encoder's units, and JSON on its way to the worker."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from saeclamp_server.scopes import ALL, Scope

EXTRA_ARGS_KEY = "saeclamp"
"""Where the program rides in vLLM's `SamplingParams.extra_args`."""


EditOp = Literal["clamp", "add", "at_least", "at_most", "scale"]


@dataclass(frozen=True)
class Edit:
    """One feature, moved at some of the request's positions."""

    sae: str
    index: int
    op: EditOp
    value: float
    """In the units of the SAE's encoder; of `scale`, a factor."""
    tokens: Scope = ALL
    special: bool = False
    """Whether special tokens and position 0 are touched too."""


@dataclass(frozen=True)
class SteeringProgram:
    """The edits of one request, and the weights they were resolved against."""

    edits: tuple[Edit, ...]
    saes: tuple[tuple[str, str], ...]
    """(name, sha256 of the weights) of every SAE the edits name, sorted."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; `from_json` is its inverse."""
        return {"edits": [asdict(edit) for edit in self.edits], "saes": [list(sae) for sae in self.saes]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SteeringProgram:
        """Raise KeyError or TypeError when `value` is not the form that `to_json` writes."""
        edits = tuple(
            Edit(**edit | {"tokens": tuple((start, end) for start, end in edit["tokens"])}) for edit in value["edits"]
        )
        return cls(edits, tuple((name, sha256) for name, sha256 in value["saes"]))

    @property
    def spec(self) -> str:
        """`sha256:...`, equal exactly for programs that do the same; the order of edits does not matter."""
        canonical = self.to_json()
        canonical["edits"].sort(key=lambda edit: json.dumps(edit, sort_keys=True))
        return "sha256:" + hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()
