"""Attention SAEs of gpt2-small."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tests.saes.loaders.layouts import connor_rob
from tests.saes.loaders.layouts.agreement import check, recognised, refusal

from saeclamp_saes import Site


def test_it_reads_all_heads_outputs_less_its_own_bias(tmp_path: Path) -> None:
    sae = check(connor_rob.write(tmp_path), "connor_rob")
    assert (sae.kind, sae.architecture, sae.model_name) == ("sae", "relu", "gpt2-small")
    assert sae.reads == sae.writes == (Site("attn_z", 5),)


def test_each_file_goes_by_its_own_configuration(tmp_path: Path) -> None:
    first, second = connor_rob.write(tmp_path, layer=0), connor_rob.write(tmp_path, layer=11, seed=1)
    assert check(first, "connor_rob").reads == (Site("attn_z", 0),)
    assert check(second, "connor_rob").reads == (Site("attn_z", 11),)


def test_a_square_one_is_told_by_its_configuration(tmp_path: Path) -> None:
    written = connor_rob.write(tmp_path, d_sae=16)
    assert check(written, "connor_rob").reads == (Site("attn_z", 5),)
    (tmp_path / f"{written.path.stem}_cfg.json").unlink()
    assert "is in no layout that is known" in refusal(written.path)


def test_what_does_not_fit_the_configuration_is_refused(tmp_path: Path) -> None:
    path = connor_rob.write(tmp_path).path
    config = path.with_name(f"{path.stem}_cfg.json")
    cfg = json.loads(config.read_text())
    config.write_text(json.dumps(cfg | {"act_size": 17}))
    assert "expected (17, 40)" in refusal(path)
    config.write_text(json.dumps(cfg | {"dict_size": "40"}))
    assert "dict_size as a positive integer" in refusal(path)
    config.write_text(json.dumps(cfg | {"act_name": "blocks.5.attn.hook_q"}))
    assert "does not say where it reads" in refusal(path)
    config.unlink()
    assert recognised(path) == []
    assert "has no gpt2-small_L5" in refusal(path, "format=connor_rob")
    torch.save({"W_enc": torch.ones(3)}, path)
    assert recognised(path) == []
