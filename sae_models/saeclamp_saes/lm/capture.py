"""Running the model over a text: the vectors at its sites, and its loss when other vectors stand there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saeclamp_saes.lm.architectures import Edit, apply_edits
from saeclamp_saes.sites import Site

Progress = Callable[[str, int, int], None]
"""Takes the name of the work, how many sequences are done, and of how many."""


@dataclass(frozen=True)
class ActivationRecording:
    """Vectors and loss of one clean run over a text."""

    sequences: Sequence[Tensor]
    """(length,) int64 token ids each"""
    vectors: Mapping[Site, Tensor]
    """(num_tokens, width) fp32 each, the sequences one after the other"""
    position: Tensor
    """(num_tokens,) int64: place in the token's own sequence"""
    is_special: Tensor
    """(num_tokens,) bool"""
    cross_entropy: float
    """Mean in nats, over every token but the first of its sequence"""

    def at(self, sites: Sequence[Site]) -> Tensor:
        """Return the vectors at several sites side by side: (num_tokens, width)."""
        return torch.cat([self.vectors[site] for site in sites], dim=1)


def record(
    model: nn.Module,
    sequences: Sequence[Tensor],
    sites: Collection[Site],
    special_ids: Collection[int],
    progress: Progress,
) -> ActivationRecording:
    """
    Run the model and keep the vectors at `sites`.

    sequences: (length,) int64 token ids each
    Raises VerificationError for a site the model does not have.
    """
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def keep(site: Site) -> Edit:
        # a batch is one sequence: of several the padding would be recorded too
        return lambda x: parts[site].append(x[0].float())

    loss = 0.0
    with apply_edits(model, {site: keep(site) for site in sites}):
        for sequence in _reported(sequences, "reading the text", progress):
            loss += _loss(model, sequence)
    ids = torch.cat(list(sequences))
    return ActivationRecording(
        sequences=sequences,
        vectors={site: torch.cat(xs) for site, xs in parts.items()},
        position=torch.cat([torch.arange(len(sequence), device=ids.device) for sequence in sequences]),
        is_special=torch.isin(ids, torch.tensor(sorted(special_ids), dtype=ids.dtype, device=ids.device)),
        cross_entropy=loss / _num_predictions(sequences),
    )


def edited_cross_entropy(
    model: nn.Module,
    recording: ActivationRecording,
    replacements: Mapping[Site, Tensor],
    mask: Tensor,
    doing: str,
    progress: Progress,
) -> float:
    """
    Return the mean cross-entropy, in nats, when other vectors stand at some sites.

    replacements: (num_tokens, width), or (1, width) for all tokens alike
    mask:         (num_tokens,) bool, the tokens to replace; others keep their vectors
    """
    loss, first = 0.0, 0
    for sequence in _reported(recording.sequences, doing, progress):
        here = slice(first, first + len(sequence))
        edits = {site: _put(new[here] if len(new) > 1 else new, mask[here]) for site, new in replacements.items()}
        with apply_edits(model, edits):
            loss += _loss(model, sequence)
        first += len(sequence)
    return loss / _num_predictions(recording.sequences)


def _put(new: Tensor, mask: Tensor) -> Edit:
    return lambda x: torch.where(mask[:, None], new.to(x.dtype), x)


def _reported(sequences: Sequence[Tensor], doing: str, progress: Progress) -> Iterator[Tensor]:
    for done, sequence in enumerate(sequences):
        progress(doing, done, len(sequences))
        yield sequence
    progress(doing, len(sequences), len(sequences))


@torch.no_grad()
def _loss(model: nn.Module, sequence: Tensor) -> float:
    """Return the sum, over all tokens but the first, of minus the log probability."""
    logits = model(input_ids=sequence[None], use_cache=False).logits[0, :-1].float()
    return float(nn.functional.cross_entropy(logits, sequence[1:], reduction="sum"))


def _num_predictions(sequences: Sequence[Tensor]) -> int:
    return sum(len(sequence) - 1 for sequence in sequences)
