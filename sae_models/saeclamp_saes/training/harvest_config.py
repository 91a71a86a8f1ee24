"""What is to be harvested, and the parts of it that do not depend on where it is kept."""

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
    """Documents, and what of them is kept."""

    data: tuple[Path, ...]
    """Files and folders"""
    model_name: str
    """As it stands in an SAE's configuration"""
    model_sha256: Mapping[str, str]
    """Of its weights, by file name"""
    tokens: int
    """To train on"""
    held_out_share: float = 0.05
    """Of the documents"""
    held_out_tokens: int = 500_000
    """At most; and at most a tenth of those to train on"""
    store: StoreDtype = "bfloat16"
    """How vectors are kept"""

    @cached_property
    def files(self) -> list[Path]:
        """The files of the data. Raises TrainingError."""
        return data_files(self.data)

    @property
    def most_held_out(self) -> int:
        """Tokens to measure on, at most."""
        return max(2, min(self.held_out_tokens, self.tokens // 10))

    def identity(self, reader: ActivationReader) -> dict[str, Any]:
        """All that the vectors depend on, JSON-able."""
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
        """Begin to read one side's documents."""
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
    Measure the lengths above which vectors are sinks, once: afterwards they are in the file.

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
