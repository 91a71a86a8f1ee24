"""Every mistake that a reading stands for is undone by that reading, better than by any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saeclamp_saes.evaluation.interpretations import (
    Interpretation,
    activity_of,
    at_other_sites,
    declared,
    with_other_preprocessing,
)
from saeclamp_saes.evaluation.metrics import explained_variance
from saeclamp_saes.sae import SAE, InputNorm
from saeclamp_saes.sites import Site

D = 24
PLACE = Site("resid_post", 4)


def planted(seed: int = 0) -> tuple[SAE, Tensor]:
    """
    A square SAE that is right, and the vectors it is right for: a few of its directions each, on top of b_dec.

    It subtracts b_dec from its input, and reads and writes in other directions, so that no two readings are the same.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    decoder = torch.linalg.qr(random(D, D)).Q * (1 + torch.rand(D, 1, generator=generator)) + 0.15 * random(D, D)
    encoder = torch.linalg.inv(decoder)
    b_dec = 12 * random(D) / D**0.5
    acts = (3 + torch.rand(600, D, generator=generator)) * (torch.rand(600, D, generator=generator) < 0.2)
    sae = SAE(
        reads=(PLACE,),
        writes=(PLACE,),
        W_enc=encoder,
        b_enc=-b_dec @ encoder,
        W_dec=decoder,
        b_dec=b_dec,
        threshold=torch.full((D,), 2.0),
    )
    return sae, acts @ decoder + b_dec


def scaled(sae: SAE, factor: float) -> SAE:
    """What the checkpoint holds if it was trained on inputs times `factor`."""
    return replace(sae, W_enc=sae.W_enc / factor, W_dec=sae.W_dec * factor, b_dec=sae.b_dec * factor)


def mean_length_factor(x: Tensor) -> float:
    return D**0.5 / float(x.norm(dim=1).mean())


def fits(sae: SAE, x: Tensor) -> list[tuple[float, Interpretation]]:
    """All readings, best first."""
    found = [
        (explained_variance(x, reading.reconstruct(x)), reading) for reading in with_other_preprocessing(sae, x, x)
    ]
    return sorted(found, key=lambda item: -item[0])


def test_the_planted_sae_is_right_as_it_is() -> None:
    sae, x = planted()
    assert explained_variance(x, declared(sae).reconstruct(x)) > 0.999
    others = (item for item in fits(sae, x) if "centred" not in item[1].name and not item[1].changes_activation)
    best, reading = next(others)
    assert best < 0.9, reading.name


MISTAKES: dict[str, tuple[Callable[[SAE, Tensor], SAE], str, str]] = {
    "both transposed": (
        lambda sae, x: replace(sae, W_enc=sae.W_enc.T, W_dec=sae.W_dec.T),
        "with both matrices transposed",
        "?format=NAME",
    ),
    "both transposed, then b_dec folded": (
        lambda sae, x: replace(sae, W_enc=sae.W_enc.T, W_dec=sae.W_dec.T, b_enc=-sae.b_dec @ sae.W_enc.T),
        "with both matrices transposed, b_dec subtracted",
        "?format=NAME",
    ),
    "encoder transposed": (
        lambda sae, x: replace(sae, W_enc=sae.W_enc.T),
        "with the encoder transposed",
        "?format=NAME",
    ),
    "decoder transposed": (
        lambda sae, x: replace(sae, W_dec=sae.W_dec.T),
        "with the decoder transposed",
        "?format=NAME",
    ),
    "encoder and decoder exchanged": (
        lambda sae, x: replace(sae, W_enc=sae.W_dec.T, W_dec=sae.W_enc.T),
        "with encoder and decoder exchanged",
        "?format=NAME",
    ),
    "b_dec not subtracted": (
        lambda sae, x: replace(sae, b_enc=sae.b_enc + sae.b_dec @ sae.W_enc),
        "with b_dec subtracted from the input",
        "apply_b_dec_to_input to true",
    ),
    "b_dec subtracted twice": (
        lambda sae, x: replace(sae, b_enc=sae.b_enc - sae.b_dec @ sae.W_enc),
        "without b_dec subtracted from the input",
        "apply_b_dec_to_input to false",
    ),
    "mean length forgotten": (
        lambda sae, x: scaled(sae, mean_length_factor(x)),
        "(mean length sqrt(d_in))",
        "?input_scale=",
    ),
    "mean square length forgotten": (
        lambda sae, x: scaled(sae, 1 / float(x.square().sum(dim=1).mean()) ** 0.5),
        "(mean square length 1)",
        "?input_scale=",
    ),
    "scale applied twice": (
        lambda sae, x: scaled(sae, 1 / mean_length_factor(x)),
        "(its scale not applied)",
        "normalize_activations to none",
    ),
    "layer norm applied": (
        lambda sae, x: replace(sae, input_norm=InputNorm(center=True, scale="std", eps=1e-5)),
        "with the input as it is",
        "normalize_activations to none",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_undone_best_by_its_reading(mistake: str) -> None:
    make, name, hint = MISTAKES[mistake]
    sae, x = planted()
    wrong = make(sae, x)
    assert explained_variance(x, declared(wrong).reconstruct(x)) < 0.85
    best, reading = fits(wrong, x)[0]
    assert best > 0.999
    assert name in reading.name
    assert hint in reading.hint


def test_the_scale_that_the_hint_names_is_the_one_that_was_forgotten() -> None:
    sae, x = planted()
    _, reading = fits(scaled(sae, mean_length_factor(x)), x)[0]
    assert f"?input_scale={mean_length_factor(x):.4g}" in reading.hint


def test_a_forgotten_centring_is_found() -> None:
    """Trained on x - mean; what the model gives has a mean of its own at every token."""
    sae, x = planted()
    ones = torch.ones(D) / D**0.5
    project = torch.eye(D) - torch.outer(ones, ones)
    centred = replace(sae, W_dec=sae.W_dec @ project, b_dec=sae.b_dec @ project)
    offset = 30 * torch.randn(len(x), 1, generator=torch.Generator().manual_seed(5)) * ones
    inputs = x @ project
    features = torch.linalg.pinv(centred.W_dec)
    centred = replace(centred, W_enc=features, b_enc=-centred.b_dec @ features, threshold=torch.zeros(D))
    assert explained_variance(inputs, declared(centred).reconstruct(inputs)) > 0.7
    assert explained_variance(inputs + offset, declared(centred).reconstruct(inputs + offset)) < 0.3
    best, reading = fits(centred, inputs + offset)[0]
    assert best > 0.7
    assert reading.name == "with the input centred (x - mean)"
    assert "center_writing_weights" in reading.hint


@pytest.mark.parametrize("norm", [InputNorm(center=True, scale="std", eps=1e-5), InputNorm(scale="l2")])
def test_a_forgotten_normalisation_is_found(norm: InputNorm) -> None:
    sae, x = planted()
    normed, _, _ = norm.apply(x)
    features = torch.linalg.lstsq(normed, sae.encode(x)).solution
    right = replace(sae, W_enc=features, b_enc=torch.zeros(D), W_dec=torch.linalg.pinv(features), b_dec=torch.zeros(D))
    right = replace(right, threshold=torch.full((D,), 0.5), input_norm=norm)
    own = explained_variance(x, declared(right).reconstruct(x))
    wrong = replace(right, input_norm=InputNorm())
    best, reading = max(fits(wrong, 30 * x), key=lambda item: item[0] if item[1].sae.input_norm == norm else -1e9)
    assert best == pytest.approx(own, abs=1e-3)
    assert ("layer_norm" if norm.center else "constant_norm_rescale") in reading.hint


def names(sae: SAE, *missing: Site, num_layers: int = 6) -> dict[str, str]:
    found = at_other_sites(sae, lambda site: site.layer < num_layers and site not in missing)
    return {reading.name: reading.hint for reading in found}


def test_an_sae_is_tried_one_block_up_and_down_and_at_the_other_places_of_its_block() -> None:
    found = names(planted()[0])
    assert list(found)[:2] == ["at resid_post 3", "at resid_post 5"]
    assert found["at resid_post 3"] == "use ?site=resid_post.3"
    assert {"at resid_mid 4", "at resid_mid 5", "at mlp_out 4", "at attn_out 4", "at mlp_in 4"} < found.keys()
    assert "at resid_post 4" not in found
    assert not any(" embed" in name or "resid_pre" in name for name in found)


def test_only_places_that_the_model_has_are_tried() -> None:
    found = names(planted()[0], Site("resid_mid", 4), Site("resid_mid", 5), num_layers=5)
    assert "at resid_post 5" not in found
    assert not any("resid_mid" in name for name in found)


def test_before_the_first_block_there_is_the_embedding() -> None:
    sae = replace(planted()[0], reads=(Site("resid_post", 0),), writes=(Site("resid_post", 0),))
    assert {"at resid_pre 0", "at embed 0", "at resid_mid 0", "at resid_post 1"} < names(sae).keys()


def test_a_transcoder_moves_as_a_whole_or_one_end_within_its_block() -> None:
    ends = {"reads": (Site("mlp_in", 4),), "writes": (Site("mlp_out", 4),)}
    found = names(replace(planted()[0], kind="transcoder", **ends))
    assert found["reading mlp_in 3, writing to mlp_out 3"] == "use ?site=mlp_in.3&site_out=mlp_out.3"
    assert found["reading mlp_in_no_gain 4"] == "use ?site=mlp_in_no_gain.4"
    assert found["writing to mlp_out_raw 4"] == "use ?site_out=mlp_out_raw.4"
    assert "reading mlp_out 4, writing to mlp_out 4" not in found


def test_a_crosscoder_moves_as_a_whole() -> None:
    places = (Site("resid_post", 3), Site("resid_post", 4))
    sae = replace(planted()[0], kind="crosscoder", reads=places, writes=places)
    assert list(names(sae)) == [
        "reading resid_post 2, resid_post 3, writing to resid_post 2, resid_post 3",
        "reading resid_post 4, resid_post 5, writing to resid_post 4, resid_post 5",
    ]


def test_tokens_in_parts_give_what_they_give_together() -> None:
    sae, x = planted()
    together = declared(sae).reconstruct(x)
    in_parts = activity_of(sae, x, encode_bytes=7 * D * 4).reconstruction
    assert torch.allclose(in_parts, together, atol=1e-5)
