"""Settings of a run, and hashes of those that answers and metrics depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeclamp_saes import SAEEntry
    from saeclamp_server.calibration.client import Decoding
    from saeclamp_server.calibration.features import CalibrationTarget
    from saeclamp_server.calibration.green_zone import Criteria
    from saeclamp_server.calibration.prompts import Prompts

STRENGTHS = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)
"""Default strengths, in multiples of max_act. Most features begin to show, and to break text, between 0.5 and 1."""
MAX_TOKENS = 48
AT_ONCE = 32

ANSWERS = 1
"""Version of the form in which answers are stored."""
MEASURES = 1
"""Version of the metrics: goes up when the same answers would give others."""


@dataclass(frozen=True)
class CalibrationSettings:
    """Settings of a run, the same for all its features."""

    sae: SAEEntry
    model: Mapping[str, Any]
    """Its name, and the sha256 of its weights by file name where they are at hand."""
    prompts: Prompts
    decodings: tuple[Decoding, ...]
    max_tokens: int
    """Largest number of tokens of an answer."""
    plain: bool
    """True if prompts are texts to be continued; else they are a user's messages."""
    strengths: tuple[float, ...]
    """Strengths, rising."""
    criteria: Criteria

    @property
    def asked(self) -> dict[str, Any]:
        """Settings that answers depend on, JSON-able."""
        prompts = self.prompts
        return {
            "model": dict(self.model),
            "sae": {"name": self.sae.name, "sha256": self.sae.sha256},
            "prompts": {"from": prompts.origin, "count": len(prompts.texts), "sha256": prompts.sha256},
            "form": "plain" if self.plain else "chat",
            "max_tokens": self.max_tokens,
            "decodings": [{**asdict(decoding), "seeds": list(decoding.seeds)} for decoding in self.decodings],
        }

    @property
    def questions(self) -> dict[str, list[tuple[int, int | None]]]:
        """Questions of each strength, by decoding and in order: the prompt's index, and the seed."""
        numbers = range(len(self.prompts.texts))
        return {one.name: [(number, seed) for number in numbers for seed in one.seeds] for one in self.decodings}

    @property
    def identity(self) -> str:
        """Hex digest of the settings that answers depend on."""
        return _sha256({"asked": self.asked, "form": ANSWERS})

    def identity_of(self, target: CalibrationTarget) -> str:
        """Hash what a feature's metrics depend on, but for the strengths, so that further strengths extend a curve."""
        concept = asdict(target.concept)
        return _sha256({"asked": self.asked, "max_act": target.max_act, "concept": concept, "measures": MEASURES})


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
