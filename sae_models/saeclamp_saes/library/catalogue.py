"""
The main public releases: repositories with SAEs, the model of each, the sites they read, and their files' names.

The facts are in `releases/*.json`; a release's sets are templates over its layers and a choice (an L0, a trainer's number).
It promises nothing of a file's content, which is read from the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from saeclamp_saes.sites import Point, Site

RELEASES = Path(__file__).parent / "releases"
MODELS = RELEASES / "models.json"


class CatalogueModel(NamedTuple):
    """A model that releases are for."""

    id: str
    """Name on the hub."""
    d_model: int
    num_layers: int
    gated: bool
    """True if the hub asks for a login and an accepted licence."""


class CatalogueSAE(NamedTuple):
    """One SAE of a release."""

    id: str
    """`<release>/<name>`, as users write it."""
    entry: CatalogueEntry
    layer: int
    path: str
    """Folder or file in the repository."""
    options: Mapping[str, str]
    """Options that its loader needs."""

    @property
    def reads(self) -> Site:
        """Site that it reads."""
        return Site.canonical(self.entry.reads, self.layer)

    @property
    def writes(self) -> Site:
        """Site that it writes to (the first one of a cross-layer transcoder)."""
        return Site.canonical(self.entry.writes, self.layer)


@dataclass(frozen=True)
class CatalogueEntry:
    """The SAEs of one release that have the same width and are named alike."""

    release: str
    model: CatalogueModel
    repository: str
    """Name on the hub, `ORG/NAME`."""
    format: str
    """Name of one of `loaders.FORMATS`."""
    reads: Point
    writes: Point
    d_in: int
    """Width of the vectors it reads."""
    width: str
    """Number of features as the release writes it, for example 16k; empty where it differs between the choices."""
    d_sae: int | None
    name: str
    """Template of the names, in {layer} and {choice}."""
    path: str
    """Template of the paths in the repository."""
    choices: Mapping[int, tuple[str, ...]]
    """Choices by layer; ("",) where there is nothing to choose."""
    options: Mapping[str, str | Mapping[int, str]]
    """Options that the loader needs, for each layer or for all; {site} and {site_out} stand for its sites."""
    unit: str = "native"
    """Unit of its activations, see `sae.Unit`."""
    pickled: bool = False
    notes: str = ""
    source: str = field(default="", repr=False)
    """Source of the facts."""

    def saes(self) -> Iterator[CatalogueSAE]:
        """Expand the templates, layer by layer."""
        for layer, choices in self.choices.items():
            sites = {"site": _dotted(self.reads, layer), "site_out": _dotted(self.writes, layer)}
            values = {key: value if isinstance(value, str) else value[layer] for key, value in self.options.items()}
            options = {key: value.format(**sites) for key, value in values.items()}
            for choice in choices:
                path, name = (text.format(layer=layer, choice=choice) for text in (self.path, self.name))
                yield CatalogueSAE(f"{self.release}/{name}", self, layer, path, options)

    @property
    def num_saes(self) -> int:
        """Number of SAEs it stands for."""
        return sum(len(choices) for choices in self.choices.values())


@cache
def list_entries() -> tuple[CatalogueEntry, ...]:
    """Read the whole catalogue, in its files' order."""
    facts = json.loads(MODELS.read_text(encoding="utf-8"))
    models = {
        id: CatalogueModel(id, m["d_model"], m["layers"], m.get("gated", False)) for id, m in facts["models"].items()
    }
    return tuple(
        _entry(document["source"], release, group, models[release["model"]], facts["widths"])
        for path in sorted(RELEASES.glob("*.json"))
        if path != MODELS
        for document in [json.loads(path.read_text(encoding="utf-8"))]
        for release in document["releases"]
        for group in release["saes"]
    )


@cache
def list_saes() -> Mapping[str, CatalogueSAE]:
    """Return every SAE of the catalogue, by its id."""
    return {sae.id: sae for entry in list_entries() for sae in entry.saes()}


def find_catalogue_sae(text: str) -> CatalogueSAE | None:
    """Look an id up; `l0_71` may be written for `average_l0_71`, and the path in the repository for the name."""
    known = list_saes()
    if text in known:
        return known[text]
    release, _, rest = text.partition("/")
    folder, _, last = rest.rpartition("/")
    if last.startswith("l0_") and (long := f"{release}/{folder}/average_{last}") in known:
        return known[long]
    return next((sae for sae in known.values() if sae.entry.release == release and sae.path == rest), None)


def _entry(
    source: str, release: Mapping[str, Any], group: Mapping[str, Any], model: CatalogueModel, widths: Mapping[str, int]
) -> CatalogueEntry:
    reads = group.get("reads", release["reads"])
    return CatalogueEntry(
        release=release["id"],
        model=model,
        repository=release["repository"],
        format=release["format"],
        reads=reads,
        writes=release.get("writes", reads),
        d_in=release.get("d_in", model.d_model),
        width=group.get("width", ""),
        d_sae=widths[group["width"]] if "width" in group else None,
        name=group.get("name", group["path"]),
        path=group["path"],
        choices=_choices(group),
        options={
            key: _option(value) for key, value in {**release.get("options", {}), **group.get("options", {})}.items()
        },
        unit=release.get("unit", "native"),
        pickled=release.get("pickled", False),
        notes=release.get("notes", ""),
        source=source,
    )


def _choices(group: Mapping[str, Any]) -> dict[int, tuple[str, ...]]:
    """Read `"layers": "0-3,7"` with choices for all layers or none, or choices layer by layer."""
    choices = group.get("choices", [""])
    if isinstance(choices, Mapping):
        return {int(layer): tuple(some) for layer, some in choices.items()}
    return {layer: tuple(choices) for span in group["layers"].split(",") for layer in _span(span)}


def _span(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _option(value: Any) -> str | dict[int, str]:
    return {int(layer): str(one) for layer, one in value.items()} if isinstance(value, Mapping) else str(value)


def _dotted(point: Point, layer: int) -> str:
    site = Site.canonical(point, layer)
    return f"{site.point}.{site.layer}"
