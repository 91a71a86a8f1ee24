"""
SAEs on the Hugging Face hub: `hf://ORG/REPO@COMMIT/SUB/PATH`. Only the files of the one SAE are downloaded.

A commit is named by its 40 digits; anything else is a name that can move, and `pin_revision` asks the hub where it points.
Listings and files that were fetched once need no network. The client's cache may hold a part of a repository, and an SAE
without its configuration, or one layer of many, can be read as another: so a listing is never taken from the cache.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saeclamp_saes.errors import CheckpointError, SAELibraryError
from saeclamp_saes.io.contents import PICKLES, READABLE
from saeclamp_saes.io.sanitize import first_line
from saeclamp_saes.library import listings
from saeclamp_saes.library.checkpoint_files import SEED, CheckpointFiles, select_files

SCHEME = "hf://"
COMMIT = re.compile(r"[0-9a-f]{40}")
_REFERENCE = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([\w.%-]+))?((?:/[^/\x00-\x1f\x7f]+)*)/?")

logger = logging.getLogger("saeclamp.saes")


@dataclass(frozen=True)
class HubReference:
    """Address of an SAE on the hub."""

    repository: str
    """`ORG/NAME`"""
    path: str = ""
    """Folder or file in it; empty for its top."""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubReference:
        """Read `hf://ORG/REPO@REVISION/SUB/PATH`. Raises SAELibraryError."""
        match = _REFERENCE.fullmatch(text)
        path = match[3].strip("/") if match else ""
        if match is None or any(part in (".", "..") for part in (*path.split("/"), *match[1].split("/"))):
            raise SAELibraryError(f"{text!r} is not a place on the hub: write hf://ORG/REPO@REVISION/FOLDER.")
        return cls(match[1], path, match[2])

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repository}{revision}{'/' if self.path else ''}{self.path}"

    @property
    def is_pinned(self) -> bool:
        """True if it names a commit, whose files never change."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None


def pin_revision(reference: HubReference) -> HubReference:
    """Replace a branch or tag (none: `main`) by the commit it now points to. Raises SAELibraryError."""
    if reference.is_pinned:
        return reference
    cached = _cached_commit(reference)
    try:
        with _errors_in_one_sentence(reference):
            info = _client().HfApi().model_info(reference.repository, revision=reference.revision)
    except HubUnreachableError as exc:
        if cached is None:
            raise
        logger.warning(f"{exc.reason}; using the commit in the local cache, {cached}.")
        return replace(reference, revision=cached)
    return replace(reference, revision=info.sha)


def list_files(reference: HubReference, layer: int | None = None) -> CheckpointFiles:
    """Choose the SAE's files among those that the repository has. Raises SAELibraryError."""
    assert reference.is_pinned
    sizes = listings.kept(str(reference)) or _listed_by_client(reference) or _listed_by_hub(reference)
    try:
        return select_files(sizes, reference.path, layer)
    except CheckpointError as exc:
        raise SAELibraryError(f"{reference}: {exc}") from exc


def download(reference: HubReference, files: CheckpointFiles) -> Path:
    """Bring files into the hub client's cache, where they are not there yet. Returns the folder they are in."""
    client = _client()
    if not sys.stderr.isatty():
        client.utils.disable_progress_bars()
    with _errors_in_one_sentence(reference):
        for name in files.all:
            client.hf_hub_download(reference.repository, name, revision=reference.revision)
    return _snapshot(reference)


class HubUnreachableError(SAELibraryError):
    """The hub cannot be reached, and the local cache does not help."""

    def __init__(self, reference: HubReference, reason: str) -> None:
        super().__init__(f"{reference} is not in the local cache, and {reason}.")
        self.reason = reason


@contextmanager
def _errors_in_one_sentence(reference: HubReference) -> Iterator[None]:
    """Translate the hub client's exceptions into SAELibraryError."""
    errors = _client().errors
    repository, url = reference.repository, f"https://huggingface.co/{reference.repository}"
    login = "log in with `hf auth login` or set HF_TOKEN"
    try:
        yield
    # subclasses come first: the client counts a gated repository among those not found
    except errors.GatedRepoError as exc:
        raise SAELibraryError(f"{repository} is gated: accept its conditions at {url}, then {login}.") from exc
    except errors.RepositoryNotFoundError as exc:
        raise SAELibraryError(f"The hub has no repository {repository}; if it is private, {login}.") from exc
    except errors.RevisionNotFoundError as exc:
        raise SAELibraryError(f"{repository} has no revision {reference.revision}.") from exc
    except errors.LocalEntryNotFoundError as exc:
        raise HubUnreachableError(reference, _offline() or "the hub cannot be reached") from exc
    except errors.EntryNotFoundError as exc:
        raise SAELibraryError(
            f"{repository} has no {reference.path or 'files'} at revision {reference.revision}."
        ) from exc
    except errors.OfflineModeIsEnabled as exc:
        raise HubUnreachableError(reference, _offline() or "the hub client is offline") from exc
    except errors.HFValidationError as exc:
        raise SAELibraryError(f"{str(reference)!r} is not a place on the hub: {first_line(exc)}.") from exc
    except errors.HfHubHTTPError as exc:
        status = exc.response.status_code
        if status in (401, 403):
            raise SAELibraryError(f"The hub refuses {repository} (status {status}): {login}.") from exc
        raise HubUnreachableError(reference, f"the hub answered with status {status}") from exc
    except errors.HTTPError as exc:  # the HTTP library's own: no connection, or one that broke
        raise HubUnreachableError(reference, f"the hub cannot be reached ({first_line(exc)})") from exc
    except OSError as exc:
        raise SAELibraryError(f"{reference} cannot be kept in {_client().constants.HF_HUB_CACHE}: {exc}.") from exc


def _listed_by_client(reference: HubReference) -> Mapping[str, int] | None:
    """Return the sizes of all the repository's files if the client has kept them, as it does for a whole snapshot."""
    client = _client()
    read = getattr(client, "get_cached_repo_tree", None)  # since version 2 of the client
    if read is None:
        return None
    try:
        return {file.path: file.size for file in read(reference.repository, revision=reference.revision)}
    except client.errors.CachedRepoTreeNotFoundError:
        return None


def _listed_by_hub(reference: HubReference) -> Mapping[str, int]:
    """Ask the hub for the sizes of the files around the SAE, and keep them. Raises SAELibraryError."""
    try:
        with _errors_in_one_sentence(reference):
            sizes = dict(_list(reference))
    except HubUnreachableError as exc:
        cached = _snapshot(reference) / reference.path
        if not cached.exists():
            raise
        raise SAELibraryError(
            f"The local cache may hold only a part of {reference}, and {exc.reason}: use it once with the hub in reach, or "
            f"name what is in the cache, if you know that it is whole: {cached}."
        ) from exc
    listings.keep(str(reference), sizes)
    return sizes


def _list(reference: HubReference) -> Iterator[tuple[str, int]]:
    """Yield path and size of the files in the SAE's folder, in its `checkpoints`, and in the folder above."""
    path = reference.path
    above = path.rpartition("/")[0]
    # a folder may be called like a file (`v5_32k_layer_0.pt`), so such a name is looked up in the folder above
    is_file_like = path.endswith(READABLE + PICKLES) or SEED.fullmatch(path.rpartition("/")[2])
    places = [above, above.rpartition("/")[0]] if is_file_like else [path, above]
    listed = set()
    while places:
        place = places.pop(0)
        if place in listed:
            continue
        listed.add(place)
        for item in _client().HfApi().list_repo_tree(reference.repository, place or None, revision=reference.revision):
            if isinstance(item, _client().hf_api.RepoFile):
                yield item.path, item.size
            elif item.path in (path, f"{path}/checkpoints".lstrip("/")):
                places.append(item.path)


def _repository_cache(reference: HubReference) -> Path:
    client = _client()
    name = client.file_download.repo_folder_name(repo_id=reference.repository, repo_type="model")
    return Path(str(client.constants.HF_HUB_CACHE), name)


def _snapshot(reference: HubReference) -> Path:
    return _repository_cache(reference) / "snapshots" / str(reference.revision)


def _cached_commit(reference: HubReference) -> str | None:
    ref = _repository_cache(reference) / "refs" / (reference.revision or "main")
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""
    return commit if COMMIT.fullmatch(commit) else None


def _offline() -> str | None:
    return "HF_HUB_OFFLINE forbids the network" if _client().constants.HF_HUB_OFFLINE else None


def _client() -> Any:
    """Import the hub client, which only this module needs. Raises SAELibraryError when it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.file_download
        import huggingface_hub.hf_api
        import huggingface_hub.utils
    except ImportError as exc:
        raise SAELibraryError(
            "SAEs on the hub need the package huggingface_hub: `pip install huggingface_hub`."
        ) from exc
    return huggingface_hub
