"""
The user's library: a folder of SAEs under their names, each with a record of where it is from and of its files' hashes.

    $SAECLAMP_HOME, else $XDG_DATA_HOME/saeclamp, else ~/.local/share/saeclamp
    └── saes/<name>/source.json     the record
                    <folder>/...    the files, under the names that they had where they are from

A folder with a name of its own is complete: it is renamed into place last.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from saeclamp_saes.errors import SAELibraryError
from saeclamp_saes.io.locks import exclusive_lock
from saeclamp_saes.io.paths import home_folder
from saeclamp_saes.options import Options

RECORD = "source.json"
UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class LibraryRecord:
    """The library's record of one of its SAEs."""

    name: str
    source: str
    """Its origin: `hf://ORG/REPO@COMMIT/PATH`, or an absolute path. With `told`, it leads to these files alone."""
    catalogue: str | None
    """Its id in the catalogue, if it was added by that."""
    model: str | None
    """The model it is for."""
    path: str
    """File or folder to read, relative to its folder."""
    told: Mapping[str, str]
    """Options it was added with, the user's and the catalogue's: those that chose it, and those its loader was given."""
    options: Mapping[str, str]
    """Options that its loader needs each time."""
    files: Mapping[str, str]
    """sha256 of every file but the feature book, by path relative to its folder."""
    converted_from: Mapping[str, str]
    """sha256 of the pickles it was converted from, by name; empty if it was not."""
    summary: Mapping[str, Any]
    """For listings: format, kind, architecture, reads, writes, d_in, d_sae, unit."""
    added: str
    """Date, ISO 8601."""

    @property
    def address(self) -> str:
        """Text that adds it again."""
        return f"{self.catalogue or self.source}{'?' if self.told else ''}{Options(self.told)}"

    @property
    def folder(self) -> Path:
        """Its folder in the library."""
        return library_folder() / self.name

    @property
    def location(self) -> Path:
        """File or folder to read."""
        return self.folder / self.path


def library_folder() -> Path:
    """Return the folder that holds the user's SAEs; it need not exist."""
    return home_folder() / "saes"


def records() -> Iterator[LibraryRecord]:
    """Yield the library's records, by name. One that cannot be read is passed over; `record` says what is wrong with it."""
    folder = library_folder()
    for name in sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ():
        with suppress(SAELibraryError):
            if found := record(name):
                yield found


def record(name: str) -> LibraryRecord | None:
    """Return the SAE of a name, None if there is none. Raises SAELibraryError when its record cannot be read."""
    return _read(library_folder() / name) if exists(name) else None


def exists(name: str) -> bool:
    """Tell whether the library has a folder with a record of that name, readable or not."""
    folder = library_folder() / name
    return is_library_name(name) and not folder.is_symlink() and (folder / RECORD).is_file()


def get_record(path: Path) -> LibraryRecord | None:
    """Return the record of the SAE whose files `path` is among, None for a path outside the library."""
    path, folder = path.absolute(), library_folder()
    return record(path.relative_to(folder).parts[0]) if folder in path.parents else None


def is_library_name(name: str) -> bool:
    """Tell whether a name suits a folder and an SAE: letters, digits and . _ + @ : -, no dot first and no two dots."""
    return re.fullmatch(r"\w[\w.+@:-]{0,119}", name) is not None and ".." not in name


def check_library_name(name: str) -> None:
    """Raise SAELibraryError unless it is a name that the library can use."""
    if not is_library_name(name):
        raise SAELibraryError(
            f"{name!r} cannot be a name in the library: choose a --name of letters, digits and . _ + @ : -."
        )


def check_unchanged(record: LibraryRecord, sha256: Callable[[Path], str]) -> None:
    """Raise SAELibraryError unless every file is the one that was added."""
    for file, digest in record.files.items():
        path = record.folder / file
        if not path.is_file() or sha256(path) != digest:
            problem = "is not the one that was added" if path.is_file() else "is missing"
            raise SAELibraryError(
                f"SAE {record.name!r}: {file} {problem}; restore it with `saeclamp sae remove {record.name}` and "
                f"`saeclamp sae add {shlex.quote(record.address)} --name {record.name}`."
            )


@contextmanager
def new_folder(name: str) -> Iterator[Path]:
    """
    Make a folder to fill, which gets its name in the library if the block succeeds, and is deleted if it fails.

    Raises SAELibraryError when the name is taken, also if another process was faster.
    """
    check_library_name(name)
    folder = library_folder()
    if os.path.lexists(folder / name):
        raise SAELibraryError(_taken(name))
    folder.mkdir(parents=True, exist_ok=True)
    with _unfinished_folder(folder) as unfinished:
        yield unfinished
        try:
            unfinished.rename(folder / name)
        except OSError as exc:
            if exc.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise SAELibraryError(_taken(name)) from exc
            raise


def write_record(folder: Path, record: LibraryRecord) -> None:
    """Write the record into a new SAE's folder."""
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def remove(name: str) -> Path:
    """Remove an SAE from the library, and nothing else. Returns the folder it was in. Raises SAELibraryError."""
    check_library_name(name)
    folder = library_folder() / name
    nothing = f"{folder} is no SAE that was added to the library; nothing was removed."
    if not exists(name):
        raise SAELibraryError(nothing)
    with _unfinished_folder(folder.parent) as grave:
        try:
            folder.rename(grave / name)  # from now on it is not there, even if deleting is interrupted
        except FileNotFoundError as exc:  # another process was faster
            raise SAELibraryError(nothing) from exc
    return folder


def _read(folder: Path) -> LibraryRecord | None:
    """Read a record. None when the SAE was removed meanwhile."""
    path = folder / RECORD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        read = LibraryRecord(
            **{field.name: values[field.name] for field in fields(LibraryRecord) if field.name != "name"},
            name=folder.name,
        )
        # a TypeError or ValueError, caught below, where these are no mappings
        dict(read.told), dict(read.options)
        inside = [folder / part for part in (read.path, *read.files)]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SAELibraryError(
            f"{path} is not a readable record ({exc}); remove {folder} and add the SAE again."
        ) from exc
    if any(".." in part.parts or folder not in (part, *part.parents) for part in inside):
        raise SAELibraryError(f"{path} names files outside {folder}; remove it and add the SAE again.")
    return read


@contextmanager
def _unfinished_folder(parent: Path) -> Iterator[Path]:
    """Make a temporary folder, deleted at the end unless it was renamed. One left by a process that died is swept out."""
    # a new folder that is not yet locked looks like one that a dead process left, which another process sweeps out
    with exclusive_lock(parent / ".lock"):
        _sweep(parent)
        folder = parent / f"{UNFINISHED}{secrets.token_hex(8)}"
        folder.mkdir()
        alive = os.open(folder, os.O_RDONLY)
        # of the folder itself, which no library locks; the kernel drops it when this process dies, however it dies
        fcntl.flock(alive, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(alive)


def _sweep(parent: Path) -> None:
    """Delete folders of processes that died. Live ones may rename or delete theirs at any moment, which no lock prevents."""
    for folder in parent.glob(f"{UNFINISHED}*"):
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


def _taken(name: str) -> str:
    return f"The library has an SAE {name!r} already: choose another --name, or `saeclamp sae remove {name}` first."
