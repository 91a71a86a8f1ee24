"""What every layout's reader shares: the error, the summary, and careful reading of JSON and safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saeclamp_saes.sae import Site


class CheckpointError(ValueError):
    """The checkpoint cannot be read exactly; the message says why, in one sentence."""


@dataclass(frozen=True)
class CheckpointSummary:
    """What can be known of a checkpoint without reading its weights."""

    site: Site
    d_in: int
    d_sae: int
    architecture: str
    model_name: str | None
    """The model it was trained on, as the checkpoint calls it."""
    weights: Path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise CheckpointError(f"{path} is not readable JSON: {exc}.") from exc
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return value


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a safetensors file's tensors, from its header. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}.") from None
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"{path} is not a readable safetensors file: {exc}.") from exc


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor as finite fp32. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"{path} is not a readable safetensors file: {exc}.") from exc
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: {name} holds {tensor.dtype}, not floating-point numbers.")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity.")
    return {name: tensor.float() for name, tensor in tensors.items()}


def check_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless the file holds exactly the expected tensors."""
    missing, unknown = sorted(expected.keys() - shapes), sorted(shapes.keys() - expected)
    if missing or unknown:
        problem = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)}, whose meaning is not known"
        raise CheckpointError(f"{path} {problem}.")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(f"{path}: {name} has shape {shapes[name]}, expected {shape}.")
