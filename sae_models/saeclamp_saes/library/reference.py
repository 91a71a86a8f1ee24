"""
Resolving the text that a user writes for an SAE: `[NAME=]WHAT[?key=value&key=value]`.

WHAT is looked up in this order: a bundled SAE; one of the user's library; a file or folder; an id of the catalogue, `ID` or
`ID@COMMIT`; a place on the hub, `hf://ORG/REPO@COMMIT/SUB/PATH`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from saeclamp_saes.errors import SAELibraryError
from saeclamp_saes.io.work_folder import RUN, SAE_FOLDER
from saeclamp_saes.library import catalogue, hub_places, user_library
from saeclamp_saes.library.catalogue import CatalogueSAE
from saeclamp_saes.library.hub import SCHEME, HubReference
from saeclamp_saes.library.user_library import LibraryRecord
from saeclamp_saes.options import Options

BUNDLED = {"bundled": Path(__file__).parents[1] / "bundled" / "smollm2-135m-instruct-l23"}
"""SAEs that ship with the project, by the name they are served under."""


@dataclass(frozen=True)
class SAEReference:
    """The SAE that a text names: a path, or a place on the hub."""

    name: str
    """Name to serve it under."""
    options: Options
    """Options of the user, and of its record or the catalogue."""
    path: Path | None = None
    record: LibraryRecord | None = None
    """Its record, if it is in the user's library."""
    reference: HubReference | None = None
    listed: CatalogueSAE | None = None
    """Its entry, if it is in the catalogue."""
    is_named: bool = False
    """True if the user chose the name."""

    @property
    def catalogue_id(self) -> str | None:
        """Its id in the catalogue; None if it is not in there."""
        return self.listed.id if self.listed else None


def parse_reference(text: str) -> SAEReference:
    """Find the SAE that a text names, without reading or downloading it. Raises SAEError."""
    # the name of a file may hold a question mark
    where, _, query = (text, "", "") if _exists(text) else text.partition("?")
    name, named, what = _split_name(where)
    if not what.strip():  # as a path it would be the current folder
        raise SAELibraryError(
            f"SAE {text!r} names nothing: give a bundled SAE, one of your library, a file or folder, or an id of the "
            "catalogue."
        )
    if hub_places.is_address(what):  # before its own `?download=true` is taken for options
        raise SAELibraryError(hub_places.advice(what) or f"{what!r} is no place on the hub that holds an SAE.")
    options = Options.parse(query)
    found = _locate(what, options)
    if found is None:
        raise SAELibraryError(_nothing(where, what))
    found = replace(found, name=name, is_named=True) if named else found
    if not is_servable(found.name):
        raise SAELibraryError(
            f"SAE name {found.name!r} must be non-empty and without '/', '?' or blanks; name it with --sae NAME={what}."
        )
    return found


def in_library(found: SAEReference) -> SAEReference | None:
    """
    Find the library's SAE from a place on the hub, chosen and read as asked: of its commit, or of any if it names none.

    Raises SAELibraryError when it holds several.
    """
    if found.reference is None:
        return None
    held = [record for record in user_library.records() if _is_from(record, found.reference, found.options)]
    held = [record for record in held if len(record.told) == max(len(other.told) for other in held)]
    if len(held) > 1:
        names = ", ".join(record.name for record in held)
        raise SAELibraryError(f"Your library holds {found.reference} more than once: write one of {names}.")
    return _recorded(held[0], found.options, found.name if found.is_named else None) if held else None


def is_servable(name: str) -> bool:
    """Tell whether an SAE can be addressed by a name, as in `<name>/<feature>`."""
    return bool(name) and name.isprintable() and not any(char in "/?" or char.isspace() for char in name)


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such user's home
        return False


def _split_name(where: str) -> tuple[str, str, str]:
    """Split `NAME=WHAT` into NAME, "=" and WHAT; a folder's own name, and a place on the hub, may hold "=" too."""
    if where.startswith(SCHEME) or where in BUNDLED or _exists(where):
        return "", "", where
    name, named, what = where.partition("=")
    return (name, named, what) if named else ("", "", where)


def _locate(what: str, asked: Options) -> SAEReference | None:
    if what in BUNDLED:
        return SAEReference(what, asked, BUNDLED[what])
    if record := user_library.record(what):
        return _recorded(record, asked)
    if _exists(what):
        path = Path(what).expanduser()
        _refuse_run(path)
        return SAEReference(path.resolve().name, asked, path)
    if what.startswith(SCHEME):
        reference = HubReference.parse(what)
        if hub_places.PAGE.match(reference.path):
            raise SAELibraryError(hub_places.advice(what) or f"{what!r} is no place on the hub that holds an SAE.")
        layer = f"layer_{asked.values['layer']}" if "layer" in asked.values else ""
        name = _name_of(f"{reference.repository.partition('/')[2]}/{reference.path}/{layer}")
        return SAEReference(name, asked, reference=reference)
    id, _, revision = what.partition("@")
    if listed := catalogue.find_catalogue_sae(id):
        reference = HubReference(listed.entry.repository, listed.path, revision or None)
        options = Options({**listed.options, **asked.values})
        return SAEReference(_name_of(listed.id), options, reference=reference, listed=listed)
    return None


def _refuse_run(path: Path) -> None:
    """Raise SAELibraryError for the folder of a training run, of several, or a file in one: its SAE lies deeper."""
    folder = path if path.is_dir() else path.parent
    runs = [folder] if (folder / RUN).is_file() else []
    if path.is_dir() and not runs and not any(file.is_file() for file in path.iterdir()):
        runs = sorted(file.parent for file in path.glob(f"*/{RUN}"))
    if not runs:
        return
    finished = [run for run in runs if (run / SAE_FOLDER / "cfg.json").is_file()]
    what = (
        f"{path} is {'the folder' if path == folder else 'a file'} of {'a training run' if len(runs) == 1 else 'runs'}"
    )
    if not finished:
        raise SAELibraryError(
            f"{what} that has not ended, so there is no SAE in it yet: the same command goes on with it."
        )
    inside = ", or ".join(f"{run.resolve().name}={run / SAE_FOLDER}" for run in finished[:4])
    raise SAELibraryError(f"{what}; the SAE lies inside: write {inside}.")


def _recorded(record: LibraryRecord, asked: Options, name: str | None = None) -> SAEReference:
    """Take an SAE from the library. Options may add to its own. Raises SAELibraryError if they contradict these."""
    for key, value in asked.values.items():
        if record.told.get(key, value) != value:
            raise SAELibraryError(
                f"SAE {record.name!r} was added with {key}={record.told[key]}, so it cannot be read with {key}={value}: add "
                "that under a name of its own."
            )
    new = {key: value for key, value in asked.values.items() if key not in record.told}
    options = Options({**record.options, **new})
    return SAEReference(name or record.name, options, record.location, record, is_named=name is not None)


def _is_from(record: LibraryRecord, reference: HubReference, asked: Options) -> bool:
    """Tell whether a record is of that place and was added with no other options; a converted one takes no further ones."""
    if not record.source.startswith(SCHEME):
        return False
    source = HubReference.parse(record.source)
    same_place = (source.repository, source.path) == (reference.repository, reference.path)
    same_commit = reference.revision in (None, source.revision)
    told = record.told == asked.values if record.converted_from else record.told.items() <= asked.values.items()
    return same_place and same_commit and told


def _name_of(place: str) -> str:
    """Make a name without '/' of `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`: shorter, and still telling."""
    parts = [re.sub(r"^(width_|average_(?=l0_))", "", part) for part in place.split("/") if part]
    parts[-1] = re.sub(r"\.(safetensors|npz|sae\.pt|pt|pth)$", "", parts[-1])
    return re.sub(r"\s", "_", "--".join(dict.fromkeys(parts)))


def _nothing(where: str, what: str) -> str:
    """Return the message that there is no such SAE, with the nearest names and those that exist."""
    if what.count("/") and (advice := hub_places.advice(what)):
        return advice
    release, _, rest = what.partition("@")[0].partition("/")
    siblings = [entry for entry in catalogue.list_entries() if entry.release == release]
    if siblings and not rest:
        ids = [next(entry.saes()).id for entry in siblings]
        return (
            f"{release} is a release of {sum(entry.num_saes for entry in siblings)} SAEs: name one, such as {ids[0]} "
            f"(see `saeclamp sae list --catalogue {release}`)."
        )
    if siblings:
        ids = [sae.id for entry in siblings for sae in entry.saes()]
        near = _nearest(what, ids) or ids[0]
        return f"{release} has no SAE {rest!r}; nearest: {near} (see `saeclamp sae list --catalogue {release}`)."
    library = [record.name for record in user_library.records()]
    near = _nearest(what, [*BUNDLED, *library, *dict.fromkeys(entry.release for entry in catalogue.list_entries())])
    return (
        f"No SAE {where!r}: it is neither a file or folder nor a bundled SAE ({', '.join(BUNDLED)}), nor in your library "
        f"({', '.join(library) or 'empty'}), nor in the catalogue{f'; nearest: {near}' if near else ''}."
    )


def _nearest(text: str, names: Iterable[str]) -> str:
    """List up to three names that continue the text, or else look like it."""
    names = list(names)
    begins = [name for name in names if name.startswith(f"{text}/")]
    return ", ".join((begins or difflib.get_close_matches(text, names, n=3, cutoff=0.6))[:3])
