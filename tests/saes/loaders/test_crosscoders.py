"""Crosscoders: several inputs at once, each with a factor that no file holds."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tests.saes.loaders.layouts import crosscoders
from tests.saes.loaders.layouts.agreement import check, read, refusal

from saeclamp_saes import Site


def test_two_models_are_two_reads_of_one_place_with_the_published_factors(tmp_path: Path) -> None:
    sae = check(crosscoders.write_models(tmp_path), "crosscoder")
    assert sae.kind == "crosscoder"
    assert sae.reads == sae.writes == (Site("resid_post", 13),) * 2
    assert (sae.d_in, sae.d_out, sae.d_sae) == (32, 32, 40)


def test_the_factors_are_part_of_what_it_computes(tmp_path: Path) -> None:
    """Doubling the base model's factor doubles its encoder half, halves its decoder half, and moves nothing else."""
    path = crosscoders.write_models(tmp_path).path
    base, chat = crosscoders.PUBLISHED
    ours, doubled = read(path), read(path, f"input_scale={2 * base},{chat}")
    torch.testing.assert_close(doubled.W_enc[:16], 2 * ours.W_enc[:16])
    torch.testing.assert_close(doubled.W_enc[16:], ours.W_enc[16:])
    torch.testing.assert_close(doubled.W_dec[:, :16], ours.W_dec[:, :16] / 2)
    torch.testing.assert_close(doubled.b_dec[16:], ours.b_dec[16:])


def test_layers_of_one_model_are_read_in_order_with_the_users_factors(tmp_path: Path) -> None:
    sae = check(crosscoders.write_layers(tmp_path, norms=(2, 4, 5)), "crosscoder", "input_scale=0.5,0.25,0.2")
    assert sae.reads == sae.writes == tuple(Site("resid_post", layer) for layer in range(3))
    assert sae.model_name == "gpt2-small"


def test_without_its_factors_it_is_refused(tmp_path: Path) -> None:
    for written in (crosscoders.write_layers(tmp_path / "a"), crosscoders.write_models(tmp_path / "b", layer=15)):
        assert "does not hold the factors that its" in refusal(written.path)
        assert "give ?input_scale=A,B,..." in refusal(written.path, "input_scale=0.3")
    other = crosscoders.write_models(tmp_path / "c", model_name="gemma-2-9b")
    assert "does not hold the factors" in refusal(other.path)
    released = crosscoders.write_models(tmp_path / "d").path
    retrained = released.rename(released.with_name("3.pt"))
    assert "does not hold the factors" in refusal(retrained)
    for bad in ("0.3,-1", "0.3,x", "0.3,", "nan,1"):
        assert "must be positive numbers" in refusal(retrained, f"input_scale={bad}")


def test_other_factors_fit_another_release(tmp_path: Path) -> None:
    check(crosscoders.write_models(tmp_path, layer=15, scales=(0.5, 0.125)), "crosscoder", "input_scale=0.5,0.125")


def test_whether_the_stream_was_centred_can_be_said(tmp_path: Path) -> None:
    path = crosscoders.write_layers(tmp_path).path
    scales = "input_scale=0.5,0.25,0.2"
    centered, raw = read(path, scales), read(path, f"{scales}&center=no")
    means = raw.W_enc.view(3, 8, 40).mean(dim=1)
    torch.testing.assert_close(centered.W_enc.view(3, 8, 40), raw.W_enc.view(3, 8, 40) - means[:, None])


def test_two_models_with_layer_norm_must_say_whether_they_were_centred(tmp_path: Path) -> None:
    written = crosscoders.write_models(tmp_path, model_name="pythia-70m", scales=(0.5, 0.25))
    assert "does not say whether pythia-70m's vectors were centred" in refusal(written.path, "input_scale=0.5,0.25")
    check(written, "crosscoder", "input_scale=0.5,0.25&center=no")


def test_an_unknown_place_is_asked_for(tmp_path: Path) -> None:
    written = crosscoders.write_layers(tmp_path)
    config = tmp_path / "3_cfg.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"site": "z"}))
    assert "does not say where it reads" in refusal(written.path, "input_scale=1,1,1")
    sae = read(written.path, "input_scale=1,1,1&site=mlp_out.4")
    assert sae.reads == (Site("mlp_out", 4), Site("mlp_out", 5), Site("mlp_out", 6))
    config.unlink()
    assert "has no 3_cfg.json or cfg.json" in refusal(written.path, "input_scale=1,1,1")


def test_other_tensors_are_no_crosscoder(tmp_path: Path) -> None:
    written = crosscoders.write_models(tmp_path)
    torch.save(torch.load(written.path) | {"b_dec": torch.ones(32)}, written.path)
    assert "lacks a crosscoder's W_enc, W_dec, b_enc and b_dec" in refusal(written.path, "format=crosscoder")
    torch.save({"W_enc": torch.ones(2, 16, 40)}, written.path)
    assert "is in no layout that is known" in refusal(written.path)
