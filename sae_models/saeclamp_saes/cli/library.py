"""`saeclamp sae list | info | add | remove`: the user's library and the catalogue."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from saeclamp_saes.cli.log_handler import ROOT_LOGGER, set_up_log
from saeclamp_saes.cli.output import print_facts, print_json, print_table
from saeclamp_saes.errors import SAEError, SAELibraryError
from saeclamp_saes.library import catalogue, user_library
from saeclamp_saes.library.catalogue import CatalogueEntry, CatalogueSAE

if TYPE_CHECKING:
    from saeclamp_saes.library.reference import SAEReference
    from saeclamp_saes.library.resolve import SAEEntry

logger = logging.getLogger("saeclamp.saes")

WHAT = "a bundled SAE, one of your library, a file or folder, an id of the catalogue, or hf://ORG/REPO@COMMIT/PATH"


def register(commands: Any) -> None:
    """Add the four commands to the parser of `saeclamp sae`."""
    _register_list(commands)
    info = commands.add_parser("info", help="show what is known of an SAE", description="Show what is known of an SAE.")
    info.add_argument("what", metavar="WHAT", help=f"{WHAT}; ?key=value options may follow")
    info.add_argument("--json", action="store_true", help="print an object for another program")
    info.set_defaults(run=_info)
    add = commands.add_parser(
        "add",
        help="add an SAE to your library",
        description="Copy or download an SAE into your library. Pickled ones are converted, in a sandbox.",
    )
    add.add_argument(
        "what", metavar="WHAT", help="a file or folder, an id of the catalogue, or hf://ORG/REPO[@REVISION]/PATH"
    )
    add.add_argument("--name", metavar="NAME", help="its name in the library; by default, one made of what it is")
    add.add_argument("--model", metavar="MODEL", help="the model it is for, where neither catalogue nor files say")
    add.set_defaults(run=_add)
    remove = commands.add_parser(
        "remove", help="remove an SAE from your library", description="Delete an SAE from your library."
    )
    remove.add_argument("name", metavar="NAME", help="its name in the library")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    remove.set_defaults(run=_remove)


def _register_list(commands: Any) -> None:
    parser = commands.add_parser(
        "list",
        help="list bundled SAEs and your library, or the catalogue of public releases",
        description="List the bundled SAEs and your library; with --catalogue, public releases that can be added by name.",
    )
    parser.add_argument(
        "filter", metavar="TEXT", nargs="?", help="only names with this in them; a release's id lists its SAEs"
    )
    parser.add_argument("--catalogue", action="store_true", help="list public releases instead")
    parser.add_argument("--model", metavar="MODEL", help="only SAEs of models with this in their name")
    parser.add_argument("--json", action="store_true", help="print a list for another program")
    parser.set_defaults(run=_list)


def _list(args: argparse.Namespace) -> int:
    if not args.catalogue:
        _print_listing(
            [
                item
                for item in (_bundled(), *map(_recorded, user_library.records()))
                if _is_wanted(args, item["name"], item["model"])
            ],
            {
                "name": "NAME",
                "kept": "KEPT",
                "model": "MODEL",
                "reads": "READS",
                "writes": "WRITES",
                "d_sae": "FEATURES",
                "format": "FORMAT",
            },
            args.json,
        )
    elif any(entry.release == args.filter for entry in catalogue.list_entries()):
        saes = [sae for sae in catalogue.list_saes().values() if sae.entry.release == args.filter]
        columns = {
            "id": "ID",
            "model": "MODEL",
            "reads": "READS",
            "writes": "WRITES",
            "d_sae": "FEATURES",
            "pickled": "PICKLED",
        }
        _print_listing([_listed(sae) for sae in saes], columns, args.json)
    else:
        entries = [entry for entry in catalogue.list_entries() if _is_wanted(args, entry.release, entry.model.id)]
        columns = {
            "release": "RELEASE",
            "model": "MODEL",
            "reads": "READS",
            "writes": "WRITES",
            "layers": "LAYERS",
            "width": "WIDTH",
            "saes": "SAES",
            "notes": "NOTES",
        }
        _print_listing([_listed_entry(entry) for entry in entries], columns, args.json)
    return 0


def _is_wanted(args: argparse.Namespace, name: str, model: str | None) -> bool:
    return (args.filter or "").lower() in name.lower() and (args.model or "").lower() in (model or "").lower()


def _print_listing(items: list[dict[str, Any]], columns: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json(items)
    else:
        print_table(list(columns.values()), [[_text(item[key]) for key in columns] for item in items])


def _info(args: argparse.Namespace) -> int:
    from saeclamp_saes.library.reference import in_library, parse_reference
    from saeclamp_saes.library.resolve import check_numbers, find_sae, open_entry

    found = parse_reference(args.what)
    held = in_library(found) or found
    damage = None
    if held.path is None and held.listed and held.reference and not held.reference.is_pinned:
        facts = {**_listed(held.listed), "kept": f"not here: `saeclamp sae add {held.listed.id}` downloads it"}
    else:
        entry = open_entry(find_sae(args.what))
        try:
            check_numbers(entry)
        except SAEError as exc:
            damage = str(exc)
        facts = {**_opened(entry, held), "damage": damage and f"{damage} It cannot be served."}
    if args.json:
        print_json(facts)
    else:
        print_facts({name: _text(value) for name, value in facts.items() if value not in (None, "", [], {})})
    return 1 if damage else 0


def _add(args: argparse.Namespace) -> int:
    from saeclamp_saes.library.add import add

    set_up_log(ROOT_LOGGER)
    record = add(args.what, args.name, args.model)
    print(f"{record.name}: {record.summary['d_sae']} features at {record.summary['reads'][0]}, kept in {record.folder}")
    logger.info(f"serve it with --sae {record.name}")
    return 0


def _remove(args: argparse.Namespace) -> int:
    if (
        user_library.exists(args.name)
        and not args.yes
        and not _agreed(f"Delete {user_library.library_folder() / args.name}?")
    ):
        raise SAELibraryError("Nothing was removed; say --yes to remove it without being asked.")
    print(f"removed {user_library.remove(args.name)}")
    return 0


def _agreed(question: str) -> bool:
    return sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _bundled() -> dict[str, Any]:
    from saeclamp_saes.library.add import listed_summary
    from saeclamp_saes.library.reference import BUNDLED
    from saeclamp_saes.loaders import summarize

    summary = summarize(BUNDLED["bundled"])
    return {"name": "bundled", "kept": "bundled", "model": summary.model_name, **listed_summary(summary)}


def _recorded(record: user_library.LibraryRecord) -> dict[str, Any]:
    return {"name": record.name, "kept": "library", "model": record.model, "source": record.source, **record.summary}


def _listed_entry(entry: CatalogueEntry) -> dict[str, Any]:
    notes = [entry.notes, "pickled" if entry.pickled else "", "gated model" if entry.model.gated else ""]
    return {
        "release": entry.release,
        "model": entry.model.id,
        "repository": entry.repository,
        "format": entry.format,
        "reads": entry.reads,
        "writes": entry.writes,
        "layers": list(entry.choices),
        "width": entry.width,
        "d_sae": entry.d_sae,
        "saes": entry.num_saes,
        "pickled": entry.pickled,
        "notes": "; ".join(filter(None, notes)),
    }


def _listed(sae: CatalogueSAE) -> dict[str, Any]:
    entry = sae.entry
    return {
        "id": sae.id,
        "model": entry.model.id,
        "reads": str(sae.reads),
        "writes": str(sae.writes),
        "d_in": entry.d_in,
        "d_sae": entry.d_sae,
        "format": entry.format,
        "repository": entry.repository,
        "path": sae.path,
        "unit": entry.unit,
        "options": dict(sae.options),
        "pickled": entry.pickled,
        "notes": entry.notes,
        "facts from": entry.source,
    }


def _opened(entry: SAEEntry, found: SAEReference) -> dict[str, Any]:
    from saeclamp_saes.library.add import listed_summary

    record = found.record
    facts = {
        "name": entry.name,
        "path": str(entry.path),
        "model": (record.model if record else None) or entry.summary.model_name,
        **listed_summary(entry.summary),
        "units elsewhere": entry.summary.unit_note,
        "trained on texts of": entry.summary.context_size and f"{entry.summary.context_size} tokens",
        "options": dict(entry.options.values),
        "sha256": entry.sha256,
        "named features": {note.name: note.index for note in entry.features.values()},
    }
    if record:
        facts |= {
            key: value
            for key, value in asdict(record).items()
            if key in ("source", "catalogue", "added", "converted_from")
        }
        facts["files"] = "unchanged since they were added"
    return facts


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, list):
        return _spans(value) if value and isinstance(value[0], int) else ", ".join(map(str, value))
    return "" if value is None else str(value)


def _spans(numbers: list[int]) -> str:
    """Write 0, 1, 2, 5 as `0-2 5`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return " ".join("-".join(map(str, dict.fromkeys(span))) for span in spans)
