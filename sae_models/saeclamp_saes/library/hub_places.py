"""Places on the hub as people paste them, and the ids that the catalogue has of what is there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import unquote

from saeclamp_saes.errors import SAELibraryError
from saeclamp_saes.library import catalogue
from saeclamp_saes.library.catalogue import CatalogueSAE
from saeclamp_saes.library.hub import SCHEME, HubReference

HOST = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/", re.IGNORECASE)
PAGE = re.compile(r"(?:tree|blob|resolve|raw|commit)/([^/]+)/?")
"""The part of a page's address between the repository and the path."""
SHOWN = 3
"""Ids that a message shows, at most."""


def is_address(text: str) -> bool:
    """Tell whether a text is the address of a page of the hub."""
    return HOST.match(text) is not None


def parse(text: str) -> HubReference | None:
    """Find the place that an address, `hf://...` or `ORG/REPO/PATH` names; None for a text that is none of these."""
    address = text.partition("?")[0].partition("#")[0]
    bare = HOST.sub("", address, count=1).removeprefix(SCHEME)
    owner, _, rest = unquote(bare).strip("/").partition("/")
    name, _, path = rest.partition("/")
    name, _, revision = name.partition("@")
    if page := PAGE.match(path):
        revision, path = page[1], path[page.end() :]
    try:
        reference = HubReference.parse(f"{SCHEME}{owner}/{name}/{path}")
    except SAELibraryError:
        return None
    return replace(reference, revision=revision or None)


def ids_of(reference: HubReference) -> Sequence[str]:
    """Find the catalogue's ids at a place: of the SAE that is there, or whose file it is, else of all below the folder."""
    inside = [
        sae for sae in catalogue.list_saes().values() if sae.entry.repository.lower() == reference.repository.lower()
    ]
    place = f"{reference.path}/"
    there = [sae for sae in inside if place.startswith(f"{sae.path}/")]
    below = [sae for sae in inside if not reference.path or sae.path.startswith(place)]
    # a file may have a second name, as one of few that were chosen
    return [sae.id for sae in sorted(there, key=_is_second_name)[:1] or below]


def advice(text: str) -> str | None:
    """Say what to write for a place on the hub; None where nothing shows that it is one."""
    reference = parse(text)
    if reference is None:
        return None
    ids = ids_of(reference)
    at = f"@{reference.revision}" if reference.is_pinned else ""
    if len(ids) == 1:
        return f"{text!r} is a place on the hub, and the catalogue's id of it is {ids[0]}{at}: write that."
    releases = dict.fromkeys(id.partition("/")[0] for id in ids)
    listing = " or ".join(f"`saeclamp sae list --catalogue {release}`" for release in list(releases)[:SHOWN])
    if ids:
        return (
            f"{text!r} is a place on the hub with {len(ids)} SAEs of the catalogue: name one, such as "
            f"{', '.join(ids[:SHOWN])} (see {listing})."
        )
    known = {entry.repository.lower(): entry for entry in catalogue.list_entries()}
    if entry := known.get(reference.repository.lower()):
        paths = {sae.path: sae.id for sae in catalogue.list_saes().values() if sae.entry.repository == entry.repository}
        near = [paths[path] for path in difflib.get_close_matches(reference.path, paths, SHOWN, 0.6)]
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        return (
            f"The catalogue knows {entry.repository}, and no SAE at {reference.path!r} in it{nearest} (see `saeclamp sae "
            f"list --catalogue {entry.release}`)."
        )
    if is_address(text) or text.startswith(SCHEME):
        return (
            f"{text!r} is a place on the hub that the catalogue does not list: run `saeclamp sae add {reference}` once, "
            f"which records the commit, or write {SCHEME}{reference.repository}@COMMIT/{reference.path} (40 hexadecimal "
            "digits)."
        )
    near = difflib.get_close_matches(reference.repository.lower(), known, SHOWN, 0.85)
    if not near:
        return None
    listed = dict.fromkeys(entry.release for name in near for entry in [known[name]])
    return (
        f"No SAE {text!r}; if it is a place on the hub, the nearest releases of the catalogue are {', '.join(listed)}."
    )


def _is_second_name(sae: CatalogueSAE) -> bool:
    return "canonical" in sae.entry.release
