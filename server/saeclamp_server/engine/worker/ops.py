"""
Worker process: the custom op that reads activations and edits the model's vectors, and the state that it uses.

One opaque op per hooked site stays in the compiled graph as a call. Its work in a step is decided by the step inputs in its
site's state, which the worker builds before each forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from vllm.utils.torch_utils import direct_register_custom_op

from saeclamp_saes import SAE, Site
from saeclamp_saes.clamping import PART_BYTES, EditRows, FeaturePairs, ReadActs, decoder_delta, parts_of, read_acts
from saeclamp_server.engine.worker.edit_stats import EditStats
from saeclamp_server.engine.worker.feature_row_cache import FeatureRowCache
from saeclamp_server.engine.worker.prompt_means import PromptMeanRecorder
from saeclamp_server.engine.worker.step_outputs import StepOutputs, TopFeatures, TopFeaturesInputs, top_features
from saeclamp_server.engine.worker.vector_recorder import VectorRecorder

MAX_NORM = 1e12
"""
Norm of an edited vector beyond which its request fails. No model's vectors come near it, and later layers stay finite with
it: they square it, in a gated MLP and in a norm's sum, and fp32 and bf16 hold numbers up to 3e38.
"""


@dataclass(frozen=True)
class SAEStep:
    """Step inputs of one SAE. Tensors on the model's device."""

    edits: Mapping[int, EditRows]
    """Edits, by number of the site: `token` is a row of the vectors gathered there, the rest is the same at every site."""
    slot: Tensor
    """(num_pairs,) int64, slot of each pair in the edit stats"""
    counts: Tensor
    """(num_pairs, 2) fp32, 1 where the pair counts as a prompt position, as a generated position; else 0"""
    batch_row: Tensor | None = None
    """(num_pairs,) int64, row of the step's token batch; needed where edit stats are deferred"""
    verdict: Tensor | None = None
    """(num_pairs,) int64, place of the verdict on which each pair depends; None where none depends on any"""
    item: Tensor | None = None
    """(num_pairs,) int64, place of each pair's item; None where none is shown"""
    reads: Reads | None = None
    """Activations that are read besides those of the edits."""
    top: TopFeaturesInputs | None = None

    def edits_at(self, number: int) -> bool:
        """Tell whether any feature is moved at this site."""
        return number in self.edits and len(self.slot) > 0


class Reads(NamedTuple):
    """Activations that are read for rules and readouts, one entry per (token, feature) pair."""

    token: Tensor
    """(num_reads,) int64, row of the gathered vectors"""
    feature: Tensor
    """(num_reads,) int64"""
    is_seen: Tensor
    """(num_reads,) bool; False leaves the activation out"""
    act: Tensor
    """(num_reads,) int64, place of the activation in the step outputs"""


@dataclass
class LoadedSAE:
    """An SAE or vector bank on the device, with its inputs of the current step."""

    name: str
    sae: SAE
    """The SAE as step inputs number its features: whole, or the rows of the row cache."""
    row_cache: FeatureRowCache | None = None
    """Row cache; None where the SAE is whole on the device, or not needed there."""
    step: SAEStep | None = None
    """None where it reads and edits no token in this step."""
    before: ReadActs | None = None
    """Activations of the edits, read in this forward, and kept from the site that it reads to those that it writes."""

    @property
    def whole(self) -> SAE:
        """The SAE with all features, maybe in the host's memory."""
        return self.sae if self.row_cache is None else self.row_cache.whole


@dataclass
class HookState:
    """State of the op at one site."""

    site: Site
    edit_stats: EditStats
    step_outputs: StepOutputs
    reads: Sequence[LoadedSAE]
    """SAEs that read their activations here."""
    writes: Sequence[tuple[LoadedSAE, int]]
    """(SAE, number of this site among its `writes`) of the SAEs that write here."""
    whole_stream: bool
    """True if the vector is the sum of both tensors; else it is `hidden` alone."""
    norm_eps: float | None = None
    """Epsilon of the norm, where the vector is `hidden` over its root mean square; else None."""
    tokens: Tensor | None = None
    """(num_tokens,) int64, rows of the batch that are read or edited here in this step; None: none"""
    recorder: VectorRecorder = field(default_factory=VectorRecorder)
    """Records vectors while the SAEs are verified, before the server listens."""
    prompt_means: PromptMeanRecorder | None = None
    """Records vectors of requests that ask for it; one recorder for all sites of the worker."""

    @property
    def sae_names(self) -> list[str]:
        """SAEs that read or write here."""
        return [*dict.fromkeys(loaded.name for loaded in (*self.reads, *(loaded for loaded, _ in self.writes)))]


_STATES: dict[int, HookState] = {}
"""Sites' states, by number. An op takes tensors and numbers only, so it finds its state here. Written by `register_site`."""


def register_site(number: int, state: HookState) -> None:
    """Set the state of the op at the site with this number, in this process."""
    _STATES[number] = state


def steer(hidden: Tensor, residual: Tensor | None, number: int) -> None:
    """
    Read activations at a site and edit its vectors in place, on the summand `hidden`.

    hidden:   (num_tokens, width), the model's dtype
    residual: (num_tokens, width) or None; where the site is the residual stream, the vector is `hidden + residual`
    """
    state = _STATES[number]
    # recorders first: they take the vectors before this site's edits
    if state.recorder.is_recording:
        rows = state.recorder.rows
        vectors = _vectors(state, hidden, residual, rows)
        state.recorder.record(vectors, _resid_norms(state, vectors, residual, rows))
    if state.prompt_means is not None:
        for take in state.prompt_means.takes.get(str(state.site), ()):
            state.prompt_means.record(take.key, _vectors(state, hidden, residual, take.rows))
    tokens = state.tokens
    if tokens is None:
        state.step_outputs.evaluate_rules(number)  # a rule that held before may last
        return
    x = _vectors(state, hidden, residual, tokens)
    for loaded in state.reads:
        if loaded.step is not None:
            _read(state.step_outputs, loaded, loaded.step, x, number)
    state.step_outputs.evaluate_rules(number)
    if any(loaded.step is not None and loaded.step.edits_at(number) for loaded, _ in state.writes):
        _edit(state, number, hidden, x, _resid_norms(state, x, residual, tokens))


def _vectors(state: HookState, hidden: Tensor, residual: Tensor | None, tokens: Tensor) -> Tensor:
    """Gather the site's vectors: (num_tokens, width) fp32, as SAEs are, since a gate flips on a rounding error."""
    x = hidden[tokens].float()
    if state.whole_stream and residual is not None:
        return x + residual[tokens].float()
    # vLLM's fused norm returns its input's sum with the residual beside its result, but no vector without the gain
    if state.norm_eps is not None:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + state.norm_eps)
    return x


def _read(step_outputs: StepOutputs, loaded: LoadedSAE, step: SAEStep, x: Tensor, number: int) -> None:
    """
    Read the activations of an SAE that the step needs: of its edits, of its reads, and its strongest features.

    x: (num_tokens, width), the site's vectors
    """
    edits, reads, top = step.edits[number], step.reads, step.top
    if reads is None:
        loaded.before = read_acts(x, loaded.sae, edits)
    else:
        both = FeaturePairs(torch.cat((edits.token, reads.token)), torch.cat((edits.feature, reads.feature)))
        acts, scale = read_acts(x, loaded.sae, both)
        num_edits = len(edits.token)
        loaded.before = ReadActs(acts[:num_edits], scale[:num_edits])
        step_outputs.acts[reads.act] = torch.where(reads.is_seen, acts[num_edits:], float("nan"))
    if top is not None:
        step_outputs.top[loaded.name] = strongest_features(loaded.whole, x, top)


def strongest_features(sae: SAE, x: Tensor, top: TopFeaturesInputs, part_bytes: int = PART_BYTES) -> TopFeatures:
    """
    Find the strongest of all features at some rows of x, wherever the SAE is.

    x:          (num_tokens, d_in), the site's vectors
    part_bytes: memory that encoding takes at a time
    """
    found = []
    for part in parts_of(len(top.token), 4 * sae.d_sae * x.element_size(), part_bytes):  # a few tensors of this size
        rows = TopFeaturesInputs(top.token[part], top.is_seen[part], top.top_k)
        # the vectors go to the SAE, which may be whole in the host's memory alone
        found.append(top_features(sae.encode(x[rows.token].to(sae.W_enc.device)).to(x.device), rows))
    return TopFeatures(torch.cat([one.acts for one in found]), torch.cat([one.features for one in found]))


def _resid_norms(state: HookState, x: Tensor, residual: Tensor | None, tokens: Tensor) -> Tensor:
    """Compute the residual stream's norms at the gathered vectors `x`, or theirs where it is not at hand: (num_tokens,)."""
    stream = x if residual is None or state.whole_stream else x + residual[tokens].float()
    norms: Tensor = stream.norm(dim=1)
    return norms


def _edit(state: HookState, number: int, hidden: Tensor, x: Tensor, norms: Tensor) -> None:
    """
    Add every SAE's edits at this site, in place.

    A vector that would be longer than `MAX_LENGTH`, or not finite, becomes NaN, so that requests which share its keys and
    values are found lost too; they fail, and their blocks are wiped (see `collect`, `scheduler`).

    hidden: (num_tokens_of_the_step, width), changed in place
    x:      (num_tokens, width), the touched vectors before the edit
    norms:  (num_tokens,) of the residual stream, or of the site's vector where the stream is not at hand
    """
    tokens = state.tokens
    assert tokens is not None, "there are edits"
    delta = torch.zeros_like(x)
    for loaded, write in state.writes:
        step = loaded.step
        if step is None or not step.edits_at(number):
            continue
        assert loaded.before is not None, "an SAE reads before it writes"
        edits = step.edits[number]
        if step.verdict is not None:
            edits = edits._replace(mask=edits.mask * state.step_outputs.verdicts[step.verdict])
        # summed in fp32 over all SAEs, and rounded once, below: to bf16 each small change alone could be lost
        change, pushes = decoder_delta(loaded.sae, edits, loaded.before, len(x), write)
        delta += change
        # statistics at the first site alone: an SAE that writes to several makes one edit, not several
        if write == 0:
            # tiny: a zero vector gives a large dose, not NaN
            length = norms[edits.token].clamp_min(torch.finfo(torch.float32).tiny)
            _record(state, step, edits.mask, loaded.before.acts, pushes / length)
    is_sound = (x + delta).norm(dim=1) <= MAX_NORM  # which NaN is not
    state.step_outputs.lost[tokens] |= ~is_sound
    # added to the summand, not to the vector: the model adds the residual itself
    edited = torch.where(is_sound[:, None], hidden[tokens].float() + delta, float("nan"))
    hidden.index_copy_(0, tokens, edited.to(hidden.dtype))


def _record(state: HookState, step: SAEStep, mask: Tensor, acts: Tensor, dose: Tensor) -> None:
    # the mask holds verdicts and special tokens, which the plan could not know
    counts = step.counts * mask[:, None]
    measured = counts.sum(dim=1)
    sums = torch.stack((counts[:, 0], counts[:, 1], acts * measured, dose * measured), dim=1)
    peaks = torch.where(measured[:, None] > 0, torch.stack((acts, dose), dim=1), float("-inf"))
    state.edit_stats.add(step.slot, sums, peaks, step.batch_row)
    if step.item is not None:
        state.step_outputs.items[step.item] = torch.where(
            mask[:, None] > 0, torch.stack((acts, dose), dim=1), float("nan")
        )


def _steer_fake(hidden: Tensor, residual: Tensor | None, number: int) -> None:
    return None


# declared as changing `hidden` at every site: an op that only reads would be removed from the graph as dead
direct_register_custom_op("saeclamp_steer", steer, mutates_args=["hidden"], fake_impl=_steer_fake)

steer_op = torch.ops.vllm.saeclamp_steer
"""`steer` as hooks must call it, so that a compiled graph keeps it as one opaque call."""
