"""Find out in which of the published layouts a checkpoint is, and read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource
from saeclamp_saes.io.tensors import is_finite
from saeclamp_saes.loaders import (
    connor_rob,
    crosscoders,
    dictionary_learning,
    e2e,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    llama_scope,
    llama_scope_r1,
    mntss,
    mwhanna,
    native,
    openai_gpt2,
    openmoss,
    qresearch,
    qwen_scope,
    saelens,
    sparsify,
    unsupported,
)
from saeclamp_saes.options import Options
from saeclamp_saes.sae import SAE, Kind, TopK, Unit
from saeclamp_saes.sites import Site


class Loader(NamedTuple):
    """One family's layout."""

    name: str
    matches: Callable[[CheckpointSource], bool]
    read: Callable[[CheckpointSource], SAE]


FORMATS = tuple(
    Loader(module.NAME, module.matches, module.read)
    for module in (
        native,
        saelens,
        sparsify,
        dictionary_learning,
        goodfire,
        qresearch,
        qwen_scope,
        openai_gpt2,
        mwhanna,
        mntss,
        crosscoders,
        connor_rob,
        e2e,
        gemma_scope,
        gemma_scope_2,
        llama_scope,
        llama_scope_r1,
        openmoss,
    )
)


@dataclass(frozen=True)
class CheckpointSummary:
    """The facts of a checkpoint that can be known without reading its weights."""

    format: str
    """Name of the family whose layout it is."""
    kind: Kind
    architecture: str
    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    d_in: int
    d_out: int
    d_sae: int
    unit: Unit
    model_name: str | None
    """The model it was trained on, as the checkpoint calls it."""
    weights: tuple[Path, ...]
    configs: tuple[Path, ...] = ()
    """Configurations that its reading depends on."""
    approximation: str | None = None
    """Difference between its activations and the trained SAE's, where the user asked for one."""
    unit_note: str | None = None
    """Note on the units in which the family's own code gives activations, if in others than here."""
    context_size: int | None = None
    """Tokens of the texts that it was trained on; None where the checkpoint does not say."""
    keeps_largest: bool = False
    """True if each activation depends on all others, as those of a TopK SAE do."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that its computation depends on."""
        return (*self.weights, *self.configs)

    @property
    def site(self) -> Site:
        """The first site it writes to."""
        return self.writes[0]


def read_sae(
    path: Path,
    options: Options | None = None,
    *,
    unpickled: Mapping[Path, Mapping[str, Tensor]] | None = None,
    extras: Mapping[Path, Mapping[str, Any]] | None = None,
) -> SAE:
    """
    Read a checkpoint file or folder.

    unpickled, extras: for the converter, which loads pickles in a process of its own (see `CheckpointSource`)
    Raises CheckpointError with one sentence when it is no layout we know, or one that cannot be read exactly.
    """
    return read_source(CheckpointSource(path, options, unpickled=unpickled, extras=extras))[1]


def summarize(path: Path, options: Options | None = None) -> CheckpointSummary:
    """Check a checkpoint's configuration and tensor shapes without reading the weights. Raises CheckpointError."""
    source = CheckpointSource(path, options, shapes_only=True)
    layout, sae = read_source(source)
    return CheckpointSummary(
        format=layout.name,
        kind=sae.kind,
        architecture=sae.architecture,
        reads=sae.reads,
        writes=sae.writes,
        d_in=sae.d_in,
        d_out=sae.d_out,
        d_sae=sae.d_sae,
        unit=sae.unit,
        model_name=sae.model_name,
        weights=tuple(dict.fromkeys(source.opened)),
        configs=tuple(source.configs),
        approximation=source.approximation,
        unit_note=source.unit_note,
        context_size=_context_size(source.context_size),
        keeps_largest=sae.top_k is not None,
    )


def _context_size(given: Any) -> int | None:
    is_number = isinstance(given, int) and not isinstance(given, bool)
    return given if is_number and given > 0 else None


def detect(source: CheckpointSource) -> Loader:
    """Find the one layout that fits the content, or that the user named. Raises CheckpointError."""
    unsupported.refuse_unsupported(source)
    named = source.options.text("format", *(layout.name for layout in FORMATS))
    if named is not None:
        return next(layout for layout in FORMATS if layout.name == named)
    fitting = [layout for layout in FORMATS if layout.matches(source)]
    if not fitting:
        names = ", ".join(sorted(source.tensors.shapes)[:8])
        raise CheckpointError(
            f"{source.path} is in no layout that is known: its tensors are {names}; what several families store alike is "
            "told by the configuration and the names it was published with, or by ?format=NAME."
        )
    if len(fitting) > 1:
        choices = " or ".join(f"?format={layout.name}" for layout in fitting)
        raise CheckpointError(f"{source.path} can be read in {len(fitting)} ways; say which, with {choices}.")
    return fitting[0]


def read_source(source: CheckpointSource) -> tuple[Loader, SAE]:
    """Read an opened checkpoint; without numbers if it was opened with `shapes_only`. Raises CheckpointError."""
    layout = detect(source)
    sae = _with_threshold(source, _with_activation(source, layout.read(source)))
    source.options.check_all_used()
    source.check_extras()
    for name, tensor in sae.tensors().items():
        if not is_finite(tensor):
            raise CheckpointError(f"{source.path}: with its factors folded, {name} overflows.")
    return layout, sae


def _with_activation(source: CheckpointSource, sae: SAE) -> SAE:
    """Keep each token's k largest, where the user says that the files are silent or wrong on that."""
    # a loader that asked for the option has followed it already
    if sae.top_k is not None or "activation" in source.options.used or "activation" not in source.options.values:
        return sae
    source.options.text("activation", "topk")
    k = source.options.integer("k")
    if not k:
        raise CheckpointError(f"{source.path}: ?activation=topk also needs how many activations are kept: &k=32.")
    threshold = torch.zeros_like(sae.threshold)
    return replace(sae, top_k=TopK(k), threshold=threshold, architecture="topk")


def _with_threshold(source: CheckpointSource, sae: SAE) -> SAE:
    """Use a calibrated threshold in place of TopK, if the user asks: activations then depend on their own rows alone."""
    threshold = source.options.number("threshold") if sae.top_k else None
    if threshold is None:
        return sae
    if sae.top_k is not None and sae.top_k.signed:
        raise CheckpointError(f"{source.path}: a signed TopK has no threshold form.")
    source.approximation = f"threshold {threshold:g} in place of TopK"
    return replace(sae, top_k=None, threshold=torch.full_like(sae.threshold, threshold))
