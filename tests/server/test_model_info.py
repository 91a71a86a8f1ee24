"""What cannot be steered on a model is refused from its configuration alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.sae_entries import entry

from saeclamp_saes import SAEEntry, Site
from saeclamp_saes.errors import UserError
from saeclamp_saes.sites import Point
from saeclamp_server.model_info import ModelInfo, check_compatible

GPT2 = ModelInfo("/models/gpt2", "GPT2LMHeadModel", hidden_size=16, num_layers=12, z_width=16, is_float16=False)
OLMO2 = replace(GPT2, path="/models/olmo", architecture="Olmo2ForCausalLM")


def at(point: Point, layer: int = 3) -> dict[str, SAEEntry]:
    sae, site = entry("mine", 3, 40), Site(point, layer)
    return {"mine": replace(sae, summary=replace(sae.summary, reads=(site,), writes=(site,)))}


@pytest.mark.parametrize(
    ("saes", "model", "says"),
    [
        (at("resid_post", 12), GPT2, "'mine' sits at resid_post 12; /models/gpt2 has layers 0 to 11"),
        (at("mlp_in_no_gain"), GPT2, "where a GPT2LMHeadModel cannot be steered; it can at resid_pre, resid_mid"),
        (at("mlp_out"), OLMO2, "where a Olmo2ForCausalLM cannot be steered; it can at embed, resid_pre, resid_post"),
        (
            at("resid_post"),
            replace(GPT2, hidden_size=32),
            "vectors of width 16 at resid_post 3; /models/gpt2 has width 32",
        ),
    ],
)
def test_an_sae_that_has_no_place_in_the_model_is_refused(
    saes: dict[str, SAEEntry], model: ModelInfo, says: str
) -> None:
    with pytest.raises(UserError) as raised:
        check_compatible(saes, model)
    assert says in str(raised.value)


@pytest.mark.parametrize("point", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_in"])
def test_an_sae_that_has_a_place_is_not(point: Point) -> None:
    check_compatible(at(point), GPT2)
