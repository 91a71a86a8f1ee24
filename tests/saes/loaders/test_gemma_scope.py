"""Gemma Scope's files say nothing of where they belong; their folders do, or the user."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tests.saes.loaders.layouts import gemma_scope
from tests.saes.loaders.layouts.agreement import check, read, recognised, refusal

from saeclamp_saes import Site


@pytest.mark.parametrize(
    ("release", "kind", "reads", "writes", "model"),
    [
        ("gemma-scope-2b-pt-res", "sae", Site("resid_post", 5), Site("resid_post", 5), "google/gemma-2-2b"),
        ("gemma-scope-9b-it-res", "sae", Site("resid_post", 5), Site("resid_post", 5), "google/gemma-2-9b-it"),
        ("gemma-scope-27b-pt-mlp", "sae", Site("mlp_out", 5), Site("mlp_out", 5), "google/gemma-2-27b"),
        ("gemma-scope-9b-pt-att", "sae", Site("attn_z", 5), Site("attn_z", 5), "google/gemma-2-9b"),
        (
            "gemma-scope-2b-pt-transcoders",
            "transcoder",
            Site("mlp_in_no_gain", 5),
            Site("mlp_out", 5),
            "google/gemma-2-2b",
        ),
    ],
)
@pytest.mark.parametrize("hub", [False, True])
def test_the_release_says_where_it_reads_and_writes(
    tmp_path: Path, release: str, kind: str, reads: Site, writes: Site, model: str, hub: bool
) -> None:
    sae = check(gemma_scope.write(tmp_path, release=release, hub=hub), "gemma_scope")
    assert (sae.kind, sae.architecture, sae.unit) == (kind, "jumprelu", "native")
    assert (sae.reads, sae.writes, sae.model_name) == ((reads,), (writes,), model)


def test_an_embedding_sae_is_used_on_the_unscaled_embedding(tmp_path: Path) -> None:
    sae = check(gemma_scope.write(tmp_path, embedding=True), "gemma_scope")
    assert sae.reads == sae.writes == (Site("embed", 0),)


def test_the_file_itself_can_be_named_and_paths_can_be_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = gemma_scope.write(tmp_path, layer=7)
    check(written._replace(path=written.path / "params.npz"), "gemma_scope")
    monkeypatch.chdir(written.path)
    assert read(Path("params.npz")).reads == (Site("resid_post", 7),)


def test_without_the_release_the_sentence_says_which_option_decides(tmp_path: Path) -> None:
    written = gemma_scope.write(tmp_path, release="my-saes")
    assert "add ?site=resid_post.20 (or the like), for a transcoder ?site=mlp_in_no_gain.20&site_out" in refusal(
        written.path
    )
    assert "add ?site=resid_post.20" in refusal(written.path, "layer=5")
    assert check(written, "gemma_scope", "site=mlp_out.3").reads == (Site("mlp_out", 3),)
    transcoder = check(written, "gemma_scope", "site=mlp_in_no_gain.3&site_out=mlp_out.3")
    assert (transcoder.kind, transcoder.writes) == ("transcoder", (Site("mlp_out", 3),))


def test_without_the_layer_the_sentence_says_which_option_decides(tmp_path: Path) -> None:
    written = gemma_scope.write(tmp_path, release="gemma-scope-2b-pt-mlp")
    moved = written._replace(path=tmp_path / "gemma-scope-2b-pt-mlp" / "mine")
    os.rename(written.path, moved.path)
    assert "no folder layer_N says which layer it belongs to: add ?layer=N" in refusal(moved.path)
    assert check(moved, "gemma_scope", "layer=12").reads == (Site("mlp_out", 12),)


def test_options_that_the_path_makes_idle_are_refused(tmp_path: Path) -> None:
    written = gemma_scope.write(tmp_path)
    assert "Option layer has no meaning" in refusal(written.path, "layer=6")
    assert "Option site_out has no meaning" in refusal(written.path, "site=resid_post.5&site_out=mlp_out.5")


def test_an_embedding_sae_that_the_user_places_is_scaled_too(tmp_path: Path) -> None:
    written = gemma_scope.write(tmp_path, release="my-saes", embedding=True)
    assert "add ?site=" in refusal(written.path)
    check(written, "gemma_scope", "site=embed.0")


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    path = gemma_scope.write(tmp_path).path
    with np.load(path / "params.npz") as archive:
        stored = {name: archive[name] for name in archive}
    np.savez(path / "params.npz", **{name: array for name, array in stored.items() if name != "threshold"})
    assert "gemma_scope" not in recognised(path)
    assert "lacks threshold" in refusal(path, "format=gemma_scope")
    np.savez(path / "params.npz", **(stored | {"W_enc": stored["W_enc"].T.copy()}))
    assert "W_dec has shape (40, 16), expected (16, 16)" in refusal(path)
    np.savez(path / "params.npz", **(stored | {"W_dec": stored["W_dec"].ravel()}))
    assert "lacks the matrix W_dec" in refusal(path)


def test_a_transcoder_stays_one_wherever_the_user_places_it(tmp_path: Path) -> None:
    written = gemma_scope.write(tmp_path, release="gemma-scope-2b-pt-transcoders")
    places = {
        "site=mlp_in.5": (Site("mlp_in", 5), Site("mlp_out", 5)),
        "site_out=mlp_out.6": (Site("mlp_in_no_gain", 5), Site("mlp_out", 6)),
        "site=mlp_out.5": (Site("mlp_out", 5), Site("mlp_out", 5)),
        "site=mlp_in.3&site_out=mlp_out.4": (Site("mlp_in", 3), Site("mlp_out", 4)),
    }
    for options, (reads, writes) in places.items():
        sae = check(written, "gemma_scope", options)
        assert (sae.kind, sae.reads, sae.writes) == ("transcoder", (reads,), (writes,))


@pytest.mark.parametrize("above", ["embedding", "layer_12", "gemma-scope-9b-pt-mlp/layer_12"])
def test_folders_above_the_releases_mean_nothing(tmp_path: Path, above: str) -> None:
    assert check(gemma_scope.write(tmp_path / above), "gemma_scope").reads == (Site("resid_post", 5),)
    embedding = gemma_scope.write(tmp_path / above / "other", embedding=True)
    assert check(embedding, "gemma_scope").reads == (Site("embed", 0),)
    written = gemma_scope.write(tmp_path / above / "third")
    moved = written._replace(path=written.path.parent.parent.parent / "width_16k")
    os.rename(written.path, moved.path)
    assert "no folder layer_N says which layer it belongs to: add ?layer=N" in refusal(moved.path)
    assert check(moved, "gemma_scope", "layer=12").reads == (Site("resid_post", 12),)
