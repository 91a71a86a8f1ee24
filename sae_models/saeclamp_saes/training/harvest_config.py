"""The harvest config: the data, how much of them is kept, and the identity of the vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from saeclamp_saes.io.vector_files import StoreDtype
from saeclamp_saes.io.work_folder import damaged_error, read_json, write_json
from saeclamp_saes.lm.documents import data_files
from saeclamp_saes.lm.harvest import ActivationReader, ActivationStream, check_documents, norm_limits
from saeclamp_saes.lm.provenance import data_hashes
from saeclamp_saes.progress import ProgressCallback, no_progress


@dataclass(frozen=True)
class HarvestConfig:
    """The data of a harvest, and how much of them is kept, in which type."""

    data: tuple[Path, ...]
    """Files and folders."""
    model_name: str
    """Name for an SAE's configuration."""
    model_sha256: Mapping[str, str]
    """Hex digests of its weights, by file name."""
    tokens: int
    """Tokens to train on."""
    held_out_share: float = 0.05
    """Share of the documents that is held out."""
    held_out_tokens: int = 500_000
    """Bound on held-out tokens; they are also at most a tenth of those to train on."""
    store: StoreDtype = "bfloat16"
    """Type of the stored vectors."""

    @cached_property
    def files(self) -> list[Path]:
        """All files of the data. Raises TrainingError."""
        return data_files(self.data)

    @property
    def most_held_out(self) -> int:
        """Bound on the tokens to measure on."""
        return max(2, min(self.held_out_tokens, self.tokens // 10))

    def identity(self, reader: ActivationReader) -> dict[str, Any]:
        """Return all that the vectors depend on, JSON-able."""
        parameter = next(reader.model.parameters())
        return {
            "model": {"name": self.model_name, "sha256": dict(self.model_sha256)},
            "model_dtype": str(parameter.dtype).removeprefix("torch."),
            "device": parameter.device.type,
            "sites": [str(site) for site in reader.sites],
            "data_sha256": data_hashes(self.files),
            "context": reader.context,
            "batch_tokens": reader.batch_tokens,
            "tokens": self.tokens,
            "held_out_share": self.held_out_share,
            "held_out_tokens": self.held_out_tokens,
            "store": self.store,
        }

    def harvest(self, reader: ActivationReader, limits: torch.Tensor, *, held_out: bool) -> ActivationStream:
        """Return the stream of one side's vectors, from the first document on."""
        return ActivationStream(
            reader,
            self.files,
            held_out=held_out,
            held_out_share=self.held_out_share,
            norm_limits=limits,
            dtype=self.store,
        )


def norm_limits_from(
    path: Path, reader: ActivationReader, files: Sequence[Path], report: ProgressCallback = no_progress
) -> torch.Tensor:
    """
    Read the norms above which vectors are sinks from a file, or measure them and write it.

    returns: (num_sites,)
    Raises TrainingError for data that hold a bad line anywhere, with the line, or no token that counts.
    """
    if not path.exists():
        check_documents(reader, files, report)
        write_json(path, {"norm_limits": norm_limits(reader, files, report).tolist()})
    limits = read_json(path).get("norm_limits")
    if not isinstance(limits, list) or len(limits) != len(reader.sites) or not all(type(n) is float for n in limits):
        raise damaged_error(path)
    return torch.tensor(limits)
