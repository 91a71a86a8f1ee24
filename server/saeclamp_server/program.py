"""What one request does to the residual stream: resolved, in the encoder's units, and JSON on its way to the worker."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

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
    tokens: Literal["all", "prompt", "generated"]


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
        edits = tuple(Edit(**edit) for edit in value["edits"])
        return cls(edits, tuple((name, sha256) for name, sha256 in value["saes"]))

    @property
    def spec(self) -> str:
        """`sha256:...`, equal exactly for programs that do the same; the order of edits does not matter."""
        canonical = self.to_json()
        canonical["edits"].sort(key=lambda edit: json.dumps(edit, sort_keys=True))
        return "sha256:" + hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()

    @property
    def shares_cache(self) -> bool:
        """Whether equal programs leave equal keys and values at equal tokens, wherever their prompts end."""
        return all(edit.tokens == "all" for edit in self.edits)

    def cache_salt(self, secret: str, user_salt: str | None, nonce: str | None) -> str:
        """
        Salt that keeps this program's prefix-cache blocks apart from all others.

        `secret` keeps users from writing a salt that meets ours: the spec is public, it stands in every receipt. vLLM
        hashes salts and LoRA names in one untagged domain, hence the prefix.
        """
        parts = json.dumps([secret, self.spec, user_salt, nonce])
        return f"{EXTRA_ARGS_KEY}:{hashlib.sha256(parts.encode()).hexdigest()}"
