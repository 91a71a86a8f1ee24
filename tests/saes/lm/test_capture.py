"""What is read at a place, and put there, is what the architecture's equations say is there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.tiny_models import ARCHITECTURES, NUM_LAYERS, WIDTH, Architecture, make, sequences
from torch import Tensor, nn

from saeclamp_saes.errors import VerificationError
from saeclamp_saes.lm.architectures import LAYOUTS, apply_edits, has_site, num_blocks
from saeclamp_saes.lm.capture import edited_cross_entropy, record
from saeclamp_saes.sites import POINTS, Site

LAST = NUM_LAYERS - 1


def ignore(doing: str, done: int, total: int) -> None:
    pass


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def architecture(name: str) -> Architecture:
    return ARCHITECTURES[name]


@pytest.fixture
def model(name: str) -> nn.Module:
    return make(name)


def blocks_of(model: Any) -> Any:
    return model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers


@torch.no_grad()
def captured(model: Any, ids: Tensor, edits: dict[Site, Any] | None = None) -> tuple[dict[Site, Tensor], Any]:
    found: dict[Site, Tensor] = {}
    sites = [
        Site(point, layer)
        for point in POINTS
        for layer in range(NUM_LAYERS)
        if Site.canonical(point, layer)[0] == point
    ]
    taps = {site: lambda x, site=site: found.update({site: x.clone()}) for site in sites if has_site(model, site)}
    with apply_edits(model, taps | (edits or {})):
        out = model(input_ids=ids[None], output_hidden_states=True)
    return found, out


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-5, rtol=1e-4)


def test_every_place_holds_what_the_equations_say(model: Any, architecture: Architecture) -> None:
    found, out = captured(model, sequences()[0])
    streams = out.hidden_states
    assert close(found[Site("embed", 0)], model.get_input_embeddings()(sequences()[0])[None])
    assert close(found[Site("resid_pre", 0)], streams[0])
    for layer, block in enumerate(blocks_of(model)):
        here = {site.point: x for site, x in found.items() if site.layer == layer}
        before = streams[layer]
        middle = before if architecture.parallel else here["resid_mid"]
        assert close(architecture.o_proj(block, here["attn_z"]), here["attn_out_raw"])
        assert close(architecture.after_attention(block, here["attn_out_raw"]), here["attn_out"])
        if not architecture.parallel:
            assert close(before + here["attn_out"], middle)
        assert close(architecture.before_mlp(block, middle), here["mlp_in"])
        if architecture.without_gain:
            assert close(architecture.without_gain(block, middle), here["mlp_in_no_gain"])
        assert close(architecture.mlp(block, here["mlp_in"]), here["mlp_out_raw"])
        assert close(architecture.after_mlp(block, here["mlp_out_raw"]), here["mlp_out"])
        assert close(before + here["attn_out"] + here["mlp_out"], here["resid_post"])
        if layer < LAST:
            assert close(here["resid_post"], streams[layer + 1])


def test_the_last_layers_stream_is_not_yet_normed(model: Any) -> None:
    found, out = captured(model, sequences()[0])
    assert not torch.allclose(found[Site("resid_post", LAST)], out.hidden_states[-1], atol=0.05)


def test_places_that_an_architecture_lacks_are_errors(model: Any, architecture: Architecture) -> None:
    assert has_site(model, Site("resid_mid", 1)) is not architecture.parallel
    assert has_site(model, Site("mlp_in_no_gain", 1)) is (architecture.without_gain is not None)
    assert all(has_site(model, Site(point, 0)) for point in ("embed", "resid_pre", "resid_post", "attn_z", "mlp_out"))
    assert num_blocks(model) == NUM_LAYERS
    with (
        pytest.raises(VerificationError, match="layers 0 to 2"),
        apply_edits(model, {Site("mlp_out", 3): lambda x: None}),
    ):
        pass
    with pytest.raises(VerificationError, match="only layer 0"), apply_edits(model, {Site("embed", 1): lambda x: None}):
        pass


def test_an_edit_that_changes_nothing_changes_nothing(model: Any) -> None:
    found, out = captured(model, sequences()[0])
    for site in found:
        if site.layer in (0, 1):
            with apply_edits(model, {site: lambda x: x}), torch.no_grad():
                again = model(input_ids=sequences()[0][None]).logits
            assert close(out.logits, again), site


def test_hooks_are_gone_afterwards(model: Any) -> None:
    with apply_edits(
        model, {Site("resid_mid" if has_site(model, Site("resid_mid", 0)) else "mlp_in", 0): lambda x: 0 * x}
    ):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("point", ["resid_mid", "attn_out", "mlp_out", "mlp_in", "mlp_in_no_gain", "resid_post"])
def test_what_follows_sees_what_was_put_there(model: Any, architecture: Architecture, point: Any) -> None:
    """The equations again, of a block in which one place holds something else."""
    if not has_site(model, Site(point, 1)):
        pytest.skip(f"has no {point}")
    new = 1.5 * torch.randn(1, 11, WIDTH, generator=torch.Generator().manual_seed(3))
    clean, _ = captured(model, sequences()[0])
    leaving: list[Tensor] = []
    watch = blocks_of(model)[2].register_forward_pre_hook(lambda _, args: leaving.append(args[0]))
    with apply_edits(model, {Site(point, 1): lambda x: new}), torch.no_grad():
        model(input_ids=sequences()[0][None])
    watch.remove()
    assert close(leaving[0], leaves_the_block(blocks_of(model)[1], architecture, clean, {point: new}))


def leaves_the_block(
    block: Any, architecture: Architecture, clean: dict[Site, Tensor], put: dict[str, Tensor]
) -> Tensor:
    before = clean[Site("resid_post", 0)]
    attn_out = put.get("attn_out", clean[Site("attn_out", 1)])
    middle = before if architecture.parallel else put.get("resid_mid", before + attn_out)
    mlp_in = put.get("mlp_in", architecture.before_mlp(block, middle))
    if "mlp_in_no_gain" in put:
        names = ("pre_feedforward_layernorm", "ln_2", "post_attention_layernorm")
        norm = dict(block.named_children())[next(name for name in names if name in dict(block.named_children()))]
        gain = norm.weight + (1.0 if "Gemma" in type(norm).__name__ else 0.0)
        mlp_in = put["mlp_in_no_gain"] * gain + (norm.bias if isinstance(norm, nn.LayerNorm) else 0.0)
    mlp_out = put.get("mlp_out", architecture.after_mlp(block, architecture.mlp(block, mlp_in)))
    return put.get("resid_post", middle + mlp_out + (attn_out if architecture.parallel else 0.0))


def test_zero_heads_leave_only_the_projections_bias(model: Any, architecture: Architecture) -> None:
    with apply_edits(model, {Site("attn_z", 1): torch.zeros_like}), torch.no_grad():
        found: dict[str, Tensor] = {}
        with apply_edits(model, {Site("attn_out_raw", 1): lambda x: found.update(x=x.clone())}):
            model(input_ids=sequences()[0][None])
    z = torch.zeros(1, 11, captured(model, sequences()[0])[0][Site("attn_z", 1)].shape[-1])
    assert close(found["x"], architecture.o_proj(blocks_of(model)[1], z))


def test_a_recording_lays_the_sequences_end_to_end(model: Any) -> None:
    texts = [*sequences(2), sequences(1, length=5, seed=4)[0]]
    recording = record(model, texts, [Site("resid_post", LAST), Site("mlp_out", 0)], {int(texts[0][3])}, ignore)
    assert recording.position.tolist() == [*range(11), *range(11), *range(5)]
    assert recording.is_special.tolist() == [int(token) == int(texts[0][3]) for text in texts for token in text]
    alone, _ = captured(model, texts[2])
    assert close(recording.vectors[Site("resid_post", LAST)][22:], alone[Site("resid_post", LAST)][0])
    assert recording.at([Site("mlp_out", 0), Site("resid_post", LAST)]).shape == (27, 2 * WIDTH)


@torch.no_grad()
def test_the_cross_entropy_is_that_of_every_token_but_the_first(model: Any) -> None:
    texts = [*sequences(2), sequences(1, length=5, seed=4)[0]]
    losses = []
    for text in texts:
        logprobs = model(input_ids=text[None]).logits[0].log_softmax(dim=-1)
        losses += [-float(logprobs[i, text[i + 1]]) for i in range(len(text) - 1)]
    recording = record(model, texts, [Site("resid_post", 0)], (), ignore)
    assert recording.cross_entropy == pytest.approx(sum(losses) / 24, rel=1e-5)


def test_replacing_touches_only_the_masked_tokens(model: Any) -> None:
    """In the last layer a token's vector changes its own prediction alone, which shows where something was put."""
    texts, site = sequences(2), Site("resid_post", LAST)
    recording = record(model, texts, [site], (), ignore)
    vectors = recording.vectors[site]
    mask = torch.zeros(22, dtype=torch.bool)
    mask[14] = True

    def loss(new: Tensor, mask: Tensor = mask) -> float:
        return edited_cross_entropy(model, recording, {site: new}, mask, "", ignore)

    assert loss(vectors, torch.ones_like(mask)) == pytest.approx(recording.cross_entropy, rel=1e-5)
    assert loss(torch.zeros(1, WIDTH), ~torch.ones_like(mask)) == pytest.approx(recording.cross_entropy, rel=1e-6)
    shifted = vectors.roll(1, dims=0)
    assert loss(shifted) == pytest.approx(loss(vectors[13:14]), rel=1e-6)  # token 14 got what token 13 had
    assert loss(shifted) != pytest.approx(recording.cross_entropy, rel=1e-5)
    only_there = vectors.clone()
    only_there[14] = vectors[13]
    assert loss(only_there, torch.ones_like(mask)) == pytest.approx(loss(shifted), rel=1e-5)


def test_an_architecture_that_is_not_in_the_table_is_an_error() -> None:
    class Unknown(nn.Module):
        pass

    with pytest.raises(VerificationError, match=r"places of a Unknown are.*LlamaForCausalLM"):
        num_blocks(Unknown())


def test_the_table_has_each_tested_architecture() -> None:
    tested = {architecture.model for architecture in ARCHITECTURES.values()}
    assert LAYOUTS.keys() - tested == {"Gemma3ForConditionalGeneration"}


@torch.no_grad()
def test_a_gemma_3_that_sees_images_has_its_places_in_the_language_model() -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "vocab_size": 97, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 1}
    config = Gemma3Config(
        text_config=text | heads,
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=96,
        boi_token_index=95,
        eoi_token_index=94,
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    recording = record(model, sequences(1), [Site("resid_post", 0), Site("resid_mid", 1)], (), ignore)
    streams = model(input_ids=sequences(1)[0][None], output_hidden_states=True).hidden_states
    assert close(recording.vectors[Site("resid_post", 0)], streams[1][0])
