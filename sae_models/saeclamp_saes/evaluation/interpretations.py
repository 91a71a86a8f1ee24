"""
Interpretations: other ways to apply the same weights, for the case that the claimed one is wrong.

Each is a mistake that public checkpoints, their configurations or their loaders have made, with advice that puts it right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from saeclamp_saes.evaluation import metrics
from saeclamp_saes.evaluation.report import InterpretationScore
from saeclamp_saes.sae import SAE, InputNorm, TopK
from saeclamp_saes.sites import POINTS, Site

ENCODE_BYTES = 256 << 20
"""Memory for the activations of all features at once; more tokens than fit are encoded in parts."""
COMPARED_TOKENS = 1024
"""Tokens on which all interpretations are compared."""
TRIED_K = (16, 32, 64, 128, 256, 512)
"""Values of k of published TopK SAEs."""
LAYER_NORM = InputNorm(center=True, scale="std", eps=1e-5)
TO_UNIT_LENGTH = InputNorm(scale="l2")


@dataclass(frozen=True)
class Interpretation:
    """One way to apply an SAE's weights."""

    name: str
    """The difference to the claimed one, as in `at resid_post 22`."""
    hint: str
    """Advice if this is the right one."""
    sae: SAE
    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    factor_in: float = 1.0
    """Factor that multiplies the input."""
    factor_out: float = 1.0
    """Factor that divides the output."""

    changes_activation: bool = False
    """True if only the activation function differs, and with it the number of active features."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """
        Encode and decode, a part of the tokens at a time.

        x:       (num_tokens, d_in)
        returns: (num_tokens, d_out)
        """
        return self.use(x)[0]

    def use(self, x: Tensor) -> tuple[Tensor, float]:
        """
        Encode and decode, a part of the tokens at a time.

        x:       (num_tokens, d_in)
        returns: (num_tokens, d_out), and the mean number of active features per token
        """
        activity = activity_of(self.sae, x * self.factor_in)
        return activity.reconstruction / self.factor_out, float(activity.l0.double().mean())


def token_chunks(x: Tensor, sae: SAE, encode_bytes: int = ENCODE_BYTES) -> Sequence[Tensor]:
    """
    Split tokens into parts whose activations fit in memory.

    x: (num_tokens, d_in)
    """
    return torch.split(x, max(1, encode_bytes // (sae.d_sae * sae.W_enc.element_size())))


class Activity(NamedTuple):
    """Reconstructions and active features of an SAE on some tokens."""

    reconstruction: Tensor
    """(num_tokens, d_out)"""
    l0: Tensor
    """(num_tokens,) int64"""
    num_active: Tensor
    """(d_sae,) int64"""


def activity_of(sae: SAE, x: Tensor, *, encode_bytes: int = ENCODE_BYTES) -> Activity:
    """
    Encode and decode once, a part of the tokens at a time, counting what is active.

    x: (num_tokens, d_in)
    """
    decoded, counts, num_active = [], [], torch.zeros(sae.d_sae, dtype=torch.int64, device=x.device)
    for part in token_chunks(x, sae, encode_bytes):
        acts = sae.encode(part)
        decoded.append(sae.decode(acts, part))
        counts.append(metrics.l0(acts))
        num_active += acts.count_nonzero(dim=0)
    return Activity(torch.cat(decoded), torch.cat(counts), num_active)


def score(
    reading: Interpretation, x: Tensor, target: Tensor, variances: Tensor, num_components: int
) -> InterpretationScore:
    """
    Measure an interpretation.

    x, target:      (num_tokens, d_in), (num_tokens, d_out): vectors at the sites it reads and writes
    variances:      `metrics.principal_variances` of the target
    num_components: principal components to compare with; an interpretation with another activation function has its own
    """
    reconstruction, l0 = reading.use(x)
    return InterpretationScore(
        name=reading.name,
        explained_variance=metrics.explained_variance(target, reconstruction),
        hint=reading.hint,
        writes=tuple(map(str, reading.writes)),
        pca_explained_variance=metrics.share_of(variances, round(l0) if reading.changes_activation else num_components),
        l0=l0,
        changes_activation=reading.changes_activation,
    )


def declared(sae: SAE) -> Interpretation:
    """Return the interpretation that its files and options ask for."""
    return Interpretation("as claimed", "", sae, sae.reads, sae.writes)


def at_other_sites(sae: SAE, has_site: Callable[[Site], bool]) -> Iterator[Interpretation]:
    """
    Yield the same SAE at other sites: one block up and down, and the other sites of its own block.

    A transcoder's two sites are moved together to other blocks, and one at a time within its block.
    """
    for step in (-1, 1):
        reads, writes = (tuple(_moved(site, step) for site in sites) for sites in (sae.reads, sae.writes))
        if all(site is not None and has_site(site) for site in (*reads, *writes)):
            yield _at(sae, tuple(filter(None, reads)), tuple(filter(None, writes)))
    if len(sae.reads) > 1 or len(sae.writes) > 1:
        return
    for site in filter(has_site, _neighbours(sae.reads[0])):
        yield _at(sae, (site,), (site,) if sae.kind == "sae" else sae.writes)
    if sae.kind != "sae":
        for site in filter(has_site, _neighbours(sae.writes[0])):
            yield _at(sae, sae.reads, (site,))


def with_other_preprocessing(sae: SAE, x: Tensor, target: Tensor) -> Iterator[Interpretation]:
    """
    Yield the SAE at its own sites with another activation function, input, scale, bias or orientation.

    x:      (num_tokens, d_in), to estimate scales from
    target: (num_tokens, d_out)
    """
    yield from _other_activations(sae, declared(sae).use(x)[1])
    if sae.kind == "sae":  # what a transcoder writes has another mean and length than what it reads
        yield from _other_inputs(sae)
    yield from _other_scales(sae, x, target)
    if sae.d_in == sae.d_out and len(sae.reads) == 1:
        yield from _other_orientations(sae)


def _moved(site: Site, step: int) -> Site | None:
    """Return the same point `step` blocks further; None before the first."""
    if site.point in ("embed", "resid_pre"):
        return Site("resid_post", 0) if step > 0 else None
    if site.layer + step < 0:
        return Site("resid_pre", 0) if site.point == "resid_post" else None
    return Site(site.point, site.layer + step)


def _neighbours(site: Site) -> list[Site]:
    places = [Site.canonical(point, site.layer) for point in POINTS if point != "embed" or site.layer == 0]
    places.append(Site("resid_mid", site.layer + 1))
    already = (site, _moved(site, -1), _moved(site, 1))
    return [place for place in places if place not in already]


def _at(sae: SAE, reads: tuple[Site, ...], writes: tuple[Site, ...]) -> Interpretation:
    if sae.kind == "sae":
        name, option = f"at {_listed(reads)}", f"?site={_option(reads)}"
    elif reads == sae.reads:
        name, option = f"writing to {_listed(writes)}", f"?site_out={_option(writes)}"
    elif writes == sae.writes:
        name, option = f"reading {_listed(reads)}", f"?site={_option(reads)}"
    else:
        name = f"reading {_listed(reads)}, writing to {_listed(writes)}"
        option = f"?site={_option(reads)}&site_out={_option(writes)}"
    hint = f"use {option}" if len(reads) == len(writes) == 1 else "the layers in its configuration are off"
    return Interpretation(name, hint, sae, reads, writes)


def _listed(sites: tuple[Site, ...]) -> str:
    return ", ".join(map(str, sites))


def _option(sites: tuple[Site, ...]) -> str:
    return ",".join(f"{site.point}.{site.layer}" for site in sites)


def _other_activations(sae: SAE, l0: float) -> Iterator[Interpretation]:
    """
    Yield it with a TopK that no configuration names, or without the one that is named, or without thresholds.

    l0: features that are active per token, as claimed
    """
    own = replace(declared(sae), changes_activation=True)
    relu = replace(sae, top_k=None, threshold=torch.zeros_like(sae.threshold))
    if sae.top_k is not None:
        other = replace(sae, top_k=sae.top_k._replace(signed=not sae.top_k.signed))
        name = "TopK" if sae.top_k.signed else "AbsTopK"
        hint = f"its {sae.top_k.k} activations are chosen otherwise: set its configuration's architecture to {name.lower()}"
        yield replace(own, name=f"as {name}", hint=hint, sae=other)
        hint = "it was not trained with a TopK: correct its configuration's architecture"
        yield replace(own, name="as a plain ReLU", hint=hint, sae=relu)
        return
    if sae.threshold.any():
        hint = "its thresholds are not those that it was trained with, or in other units: correct its configuration"
        yield replace(own, name="without its thresholds", hint=hint, sae=relu)
    for k in (k for k in TRIED_K if k <= l0 / 2):
        hint = f"it was trained with a TopK: use ?activation=topk&k={k} (or the k that its card names)"
        yield replace(own, name=f"as TopK with k = {k}", hint=hint, sae=replace(relu, top_k=TopK(k)))


def _other_inputs(sae: SAE) -> Iterator[Interpretation]:
    """Yield it with the input centred, layer-normed or of one norm, or as it is where the SAE normalises it."""
    choices = {
        "with the input centred (x - mean)": (
            InputNorm(center=True),
            "it was trained on a model with center_writing_weights: set that in the configuration's "
            "model_from_pretrained_kwargs",
        ),
        "with a layer-normed input": (
            LAYER_NORM,
            "it was trained on layer-normed inputs: set normalize_activations to layer_norm in its configuration",
        ),
        "with the input scaled to length sqrt(d_in)": (
            TO_UNIT_LENGTH,
            "it was trained on inputs of one length: set normalize_activations to constant_norm_rescale in its "
            "configuration",
        ),
        "with the input as it is": (
            InputNorm(),
            "it was not trained on normalised inputs: set normalize_activations to none in its configuration",
        ),
    }
    for name, (norm, hint) in choices.items():
        # another eps alone is no other interpretation
        if norm[:2] != sae.input_norm[:2]:
            yield replace(declared(sae), name=name, hint=hint, sae=replace(sae, input_norm=norm))


def _other_scales(sae: SAE, x: Tensor, target: Tensor) -> Iterator[Interpretation]:
    """Yield it with a constant factor of the training set, which may have been forgotten or applied twice."""
    if not (x.any() and target.any()):
        return
    mean_in, mean_out = (vectors.shape[1] ** 0.5 / float(vectors.norm(dim=1).mean()) for vectors in (x, target))
    rms_in, rms_out = (1.0 / float(vectors.square().sum(dim=1).mean()) ** 0.5 for vectors in (x, target))
    forgotten = (
        "it was trained on scaled inputs: use ?input_scale={0:.4g} where its format takes that, else have its "
        "configuration say so (normalize_activations: expected_average_only_in) or fold the factor into its weights"
    )
    yield replace(
        declared(sae),
        name=f"with the input times {mean_in:.4g} (mean length sqrt(d_in))",
        hint=forgotten.format(mean_in),
        factor_in=mean_in,
        factor_out=mean_out,
    )
    yield replace(
        declared(sae),
        name=f"with the input times {rms_in:.4g} (mean square length 1)",
        hint=forgotten.format(rms_in),
        factor_in=rms_in,
        factor_out=rms_out,
    )
    yield replace(
        declared(sae),
        name=f"with the input times {1 / mean_in:.4g} (its scale not applied)",
        hint="its weights hold the input scale already: set normalize_activations to none in its configuration",
        factor_in=1 / mean_in,
        factor_out=1 / mean_out,
    )


def _other_orientations(sae: SAE) -> Iterator[Interpretation]:
    """Yield it with b_dec subtracted from the input or not, and with matrices exchanged or transposed."""
    wrong = "its matrices are stored in another orientation: name the right family with ?format=NAME"
    shapes = {"with encoder and decoder exchanged": replace(sae, W_enc=sae.W_dec.T, W_dec=sae.W_enc.T)}
    if sae.d_sae == sae.d_in:
        shapes["with both matrices transposed"] = replace(sae, W_enc=sae.W_enc.T, W_dec=sae.W_dec.T)
        shapes["with the encoder transposed"] = replace(sae, W_enc=sae.W_enc.T)
        shapes["with the decoder transposed"] = replace(sae, W_dec=sae.W_dec.T)
    for name, turned in shapes.items():
        yield replace(declared(sae), name=name, hint=wrong, sae=turned)
    if not sae.b_dec.any():
        return
    # a subtraction of b_dec from the input is folded into b_enc, so it is there that it is tried and undone
    folded = sae.b_dec @ sae.W_enc
    for name, turned in shapes.items():
        if turned.W_enc is not sae.W_enc:  # as if b_dec was subtracted from the input, with the wrong matrix
            b_enc = sae.b_enc + folded - sae.b_dec @ turned.W_enc
            yield replace(declared(sae), name=f"{name}, b_dec subtracted", hint=wrong, sae=replace(turned, b_enc=b_enc))
    bias = "set apply_b_dec_to_input to {0} in its configuration, or name the right family with ?format=NAME"
    yield replace(
        declared(sae),
        name="with b_dec subtracted from the input",
        hint=f"it was trained with b_dec subtracted from its input: {bias.format('true')}",
        sae=replace(sae, b_enc=sae.b_enc - folded),
    )
    yield replace(
        declared(sae),
        name="without b_dec subtracted from the input",
        hint=f"it was trained without b_dec subtracted from its input: {bias.format('false')}",
        sae=replace(sae, b_enc=sae.b_enc + folded),
    )
