"""One version of a variant, addressed by the hash of its content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from saeclamp.types import ExportedVariant, Steering, Variant
from saeclamp_server.steering.program import SteeringProgram
from saeclamp_server.variants.names import version_name


@dataclass(frozen=True)
class VariantVersion:
    """A version of a variant, which never changes."""

    base: str
    name: str
    steering: str
    """Canonical JSON of the steering, keys sorted."""
    description: str
    meaning: str
    """Fingerprint of the resolved steering (`resolved_fingerprint`)."""
    created: int = 0
    """Seconds since 1970; no part of the address."""
    read_only: bool = False

    @property
    def sha256(self) -> str:
        """Hash of the content and the name, by which the version is addressed."""
        said = [self.base, self.name, self.steering, self.description, self.meaning]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    @cached_property
    def parsed(self) -> Steering:
        """Read the steering. Raises pydantic's ValidationError where this version of saeclamp does not know it."""
        return Steering.model_validate_json(self.steering)

    def to_wire(self, alias: str | None = None) -> Variant:
        """Make the API's `Variant`. `alias` is that of its name."""
        return Variant(
            id=f"{self.base}:{self.name}",
            version=version_name(self.base, self.name, self.sha256),
            name=self.name,
            base=self.base,
            alias=alias,
            steering=json.loads(self.steering),
            description=self.description,
            meaning=self.meaning,
            sha256=self.sha256,
            created=self.created,
            read_only=self.read_only,
        )

    def to_export(self, alias: str | None = None) -> dict[str, Any]:
        """Make an `ExportedVariant` as JSON. `alias` is that of its name."""
        kept = {name: value for name, value in asdict(self).items() if name != "read_only"}
        return {**kept, "steering": json.loads(self.steering), "sha256": self.sha256, "alias": alias}

    @classmethod
    def imported(cls, variant: ExportedVariant) -> VariantVersion:
        """Read a version that another server has exported; the caller must compare its hash."""
        return cls(
            variant.base,
            variant.name,
            canonical_json(variant.steering),
            variant.description,
            variant.meaning,
            variant.created,
        )


def canonical_json(steering: Steering) -> str:
    """Write a steering as canonical JSON, as it is stored and hashed."""
    return json.dumps(steering.to_json(), sort_keys=True)


def resolved_fingerprint(program: SteeringProgram) -> str:
    """
    Hash a program's effect without its positions, since those that are chosen by role differ from request to request.

    A variant whose fingerprint has changed is no longer what was created: there is another SAE under the same name, a
    feature's name in the book has gone to another feature, or values are measured by a new maximum activation.
    """
    value = program.to_json()
    for part in (*value["edits"], *value["rules"], *([value["readout"]] if value["readout"] else [])):
        del part["tokens"]
    # how much the answer shows of its edits changes nothing of what they do
    del value["itemised"]
    return "sha256:" + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
