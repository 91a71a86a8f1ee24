"""Steering that is saved under a model's name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, FailFast, Field

from saeclamp.types.base import Answer, EndpointRequest, RequestModel
from saeclamp.types.rows import Listing
from saeclamp.types.steering import Steering

VARIANT_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"

MAX_CREATED = 2**63 - 1
"""Seconds since 1970: what databases keep."""

VariantName = Annotated[str, Field(pattern=VARIANT_NAME)]
BaseName = Annotated[str, Field(min_length=1, max_length=256)]


class NewVariant(EndpointRequest):
    """Body of `POST /v1/variants`."""

    name: VariantName
    """`<base>:<name>` is the model's name then."""
    base: BaseName | None = None
    """The model that is steered; None for the one that the server serves."""
    steering: Steering
    description: Annotated[str, Field(max_length=2000)] = ""
    alias: VariantName | None = None
    """A name without a colon that may be passed as `model` too; None leaves the variant the one that it has."""


class Variant(Answer):
    """A model's name that steers. A version never changes; its name may come to mean another one."""

    object: str = "variant"
    id: str
    """`<base>:<name>`, which may be passed as `model`: the version that was created last."""
    version: str
    """`<base>:<name>@<sha>`, which may be passed as `model` too: this version, whatever comes."""
    name: str
    base: str
    alias: str | None = None
    """A name without a colon, which may be passed as `model` too: it means what `id` does."""
    steering: dict[str, Any]
    """As it was given."""
    description: str = ""
    meaning: str
    """
    sha256 of what the steering was resolved to when it was created: features, values in the encoder's units, weights. Where
    it would be resolved to something else, the variant is refused.
    """
    sha256: str
    """Hash of all of the above that users give, and of the meaning."""
    created: int
    """Seconds since 1970."""
    read_only: bool = False
    """True if it comes from the feature book, and cannot be deleted."""
    is_new: bool | None = None
    """True if `create` made this version, False where it was there before. None where a variant is looked up."""


class VariantList(Listing[Variant], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """All variants, by name."""

    object: str = "list"
    data: tuple[Variant, ...]

    @property
    def ids(self) -> list[str]:
        """Names that may be passed as `model`."""
        return [variant.id for variant in self.data]


class DeletedVariant(Answer):
    """A name that means nothing any more, and its versions."""

    object: str = "variant"
    id: str
    deleted: bool
    num_versions: int


class ExportedVariant(RequestModel):
    """One version."""

    name: VariantName
    base: BaseName
    steering: Steering
    description: Annotated[str, Field(max_length=2000)] = ""
    meaning: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Checked when it is imported."""
    created: Annotated[int, Field(strict=True, ge=0, le=MAX_CREATED)]
    alias: VariantName | None = None
    """Alias of the name, the same at all of its versions."""


class VariantExport(Answer):
    """Variants as they are exported and imported: all versions, and of each name the one that it means last."""

    model_config = ConfigDict(extra="forbid")

    object: str = "variant.export"
    # FailFast, because each of ten thousand wrong entries would else write errors of its own
    data: Annotated[tuple[ExportedVariant, ...], Field(max_length=10_000), FailFast()]


class ImportedVariants(Answer):
    """The result of an import."""

    object: str = "variant.import"
    num_new: int
    num_known: int
    """Versions that were here before, and are the same."""
