"""Hashes of the model and the data that an SAE was made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saeclamp_saes.errors import TrainingError
from saeclamp_saes.io.hashes import sha256_of

WEIGHTS = ("*.safetensors", "*.bin")
"""Patterns of the files that transformers reads a model's weights from, in its order."""


def model_hashes(model: str) -> dict[str, str]:
    """
    Hash a model's weights: sha256 by file name, of pickles only where there is nothing else.

    model: a folder, or the name of a model on the hub that was downloaded
    """
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, allow_patterns=[*WEIGHTS], local_files_only=True))
    files = next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])
    return {path.name: sha256_of(path) for path in files}


def data_hashes(files: Sequence[Path]) -> dict[str, str]:
    """
    Hash data files: sha256 by name, or by the whole path where two have the same name.

    Raises TrainingError, with its name, for one that cannot be read.
    """
    names = [file.name for file in files]
    return {file.name if names.count(file.name) == 1 else str(file.absolute()): _hash(file) for file in files}


def _hash(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as exc:
        raise TrainingError(f"{file} cannot be read: {exc.strerror or exc}.") from None
