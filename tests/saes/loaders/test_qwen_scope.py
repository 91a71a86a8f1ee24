"""Qwen-Scope's matrices are both stored the other way round, and k is in the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.saes.loaders.layouts import pickles, qwen_scope
from tests.saes.loaders.layouts.agreement import check, read, recognised, refusal

from saeclamp_saes import Site
from saeclamp_saes.sae import TopK


@pytest.mark.parametrize("config", [True, False])
def test_a_layer_is_read_exactly(tmp_path: Path, config: bool) -> None:
    sae = check(qwen_scope.write(tmp_path, config=config), "qwen_scope")
    assert sae.reads == sae.writes == (Site("resid_post", 5),)
    assert (sae.architecture, sae.top_k) == ("topk", TopK(8))
    assert sae.model_name == ("Qwen/Qwen3-1.7B-Base" if config else "Qwen3-1.7B-Base")


def test_a_folder_of_layers_is_read_by_naming_one(tmp_path: Path) -> None:
    folder = qwen_scope.write(tmp_path, layer=5).path.parent
    qwen_scope.write(tmp_path, layer=12)
    assert read(folder, "layer=12").site == Site("resid_post", 12)
    assert "choose with ?layer=N" in refusal(folder)


def test_the_hubs_cache_keeps_the_name_of_the_repository(tmp_path: Path) -> None:
    repository = "models--Qwen--SAE-Res-Qwen3.5-27B-W80K-L0_{k}/snapshots/0123abcd"
    sae = check(qwen_scope.write(tmp_path, repository=repository), "qwen_scope")
    assert (sae.top_k, sae.model_name) == (TopK(8), "Qwen3.5-27B")


def test_a_bare_file_needs_k(tmp_path: Path) -> None:
    written = qwen_scope.write(tmp_path, repository="downloads", k=6)
    assert "add ?k=50 or ?k=100" in refusal(written.path)
    assert check(written, "qwen_scope", "k=6").top_k == TopK(6)


def test_k_that_the_repository_gives_cannot_be_overridden(tmp_path: Path) -> None:
    assert refusal(qwen_scope.write(tmp_path).path, "k=9") == "Option k has no meaning for this checkpoint."


def test_a_renamed_file_needs_a_site(tmp_path: Path) -> None:
    path = qwen_scope.write(tmp_path).path
    renamed = path.rename(path.parent / "mine.pt")
    assert "add ?site=resid_post.19" in refusal(renamed)
    assert read(renamed, "site=resid_post.2").site == Site("resid_post", 2)


def test_turned_matrices_under_no_name_of_this_family_are_not_guessed_to_be_it(tmp_path: Path) -> None:
    path = qwen_scope.write(tmp_path, repository="downloads").path
    renamed = path.rename(path.parent / "mine.pt")
    assert "is in no layout that is known" in refusal(renamed, "k=8&site=resid_post.2")
    assert read(renamed, "format=qwen_scope&k=8&site=resid_post.2").site == Site("resid_post", 2)


def test_a_bare_square_file_is_read_only_when_the_user_says_which_way_round(tmp_path: Path) -> None:
    written = qwen_scope.write(tmp_path, d_in=24, d_sae=24)
    assert "?format=qwen_scope" in refusal(written.path)
    assert read(written.path, "format=qwen_scope").d_sae == 24


def test_a_configuration_settles_a_square_file(tmp_path: Path) -> None:
    check(qwen_scope.write(tmp_path, d_in=24, d_sae=24, config=True), "qwen_scope")


def test_matrices_the_usual_way_round_are_not_this_familys(tmp_path: Path) -> None:
    path = qwen_scope.write(tmp_path).path
    stored = torch.load(path)
    pickles.save(path, {name: t.T.contiguous() if t.dim() == 2 else t for name, t in stored.items()})
    assert "qwen_scope" not in recognised(path)
    pickles.save(path, {**stored, "W_dec": stored["W_dec"].T.contiguous()})
    assert "qwen_scope" not in recognised(path)


def test_another_familys_configuration_excludes_this_one_even_from_square_matrices(tmp_path: Path) -> None:
    path = qwen_scope.write(tmp_path, d_in=24, d_sae=24).path
    for name in ("config.json", "cfg.json"):
        foreign = path.parent / name
        foreign.write_text(json.dumps({"model_type": "other"}))
        assert "qwen_scope" not in recognised(path)
        foreign.unlink()
    assert recognised(path) == ["qwen_scope"]


def test_a_configuration_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    path = qwen_scope.write(tmp_path, config=True).path
    config = path.parent / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"k": 8', '"k": "8"'))
    assert "must give k as a positive integer" in refusal(path)
    config.write_text(text.replace("resid_post", "mlp_hidden"))
    assert "add ?site=resid_post.19" in refusal(path)
