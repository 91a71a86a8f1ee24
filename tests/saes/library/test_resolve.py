"""Names find their folders, and feature books are checked."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.checkpoints import make_sae

from saeclamp_saes import Options, SAEAddress, find_sae, open_entry, read_sae
from saeclamp_saes.errors import OptionError, SAELibraryError
from saeclamp_saes.io.checkpoint import LABELS
from saeclamp_saes.labelling.table import read_labels
from saeclamp_saes.library.reference import BUNDLED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_sae(tmp_path / "my-sae", layer=2, d_in=16, d_sae=24)


def test_the_bundled_sae_is_whole_and_names_the_golden_gate() -> None:
    entry = open_entry(find_sae("bundled"))
    assert (entry.name, entry.summary.d_in) == ("bundled", 576)
    assert read_sae(BUNDLED["bundled"]).d_sae == entry.summary.d_sae
    assert entry.index_of("nobody") is None
    bridge = entry.index_of("golden-gate")
    assert bridge is not None
    note = entry.features[bridge]
    assert note.max_act is not None
    assert note.clamp is not None
    assert 0 < note.clamp[0] < note.clamp[1] < 1.5


def test_every_named_feature_of_the_bundled_sae_steers_and_says_how() -> None:
    notes = open_entry(find_sae("bundled")).features.values()
    curves = json.loads((BUNDLED["bundled"] / "calibration.json").read_text())["features"]
    assert len(notes) >= 12
    for note in notes:
        assert note.description, note.name
        assert note.max_act, note.name
        assert note.clamp is not None, note.name
        assert note.best is not None, note.name
        assert 0 < note.clamp[0] <= note.best <= note.clamp[1], note.name
        assert note.evidence is not None, note.name
        assert note.evidence["hit"] >= 0.25, note.name
        curve = curves[str(note.index)]
        assert note.evidence["perplexity_ratio"] <= curve["criteria"]["max_perplexity"] <= 6, note.name
        assert (curve["name"], curve["best"], curve["green_zone"]) == (note.name, note.best, list(note.clamp)), (
            note.name
        )


def test_the_bundled_labels_are_of_its_weights_and_quote_the_models_own_text_alone() -> None:
    folder = BUNDLED["bundled"]
    labels = read_labels(folder / LABELS, read_sae(folder))
    assert labels.info.settings["quoted"] == ["chats.jsonl"]
    num_chats = 1241
    assert all(piece.document < num_chats for row in labels for piece in (*row.examples, *row.inactive))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 25e6


def test_a_folder_is_served_under_its_own_name_or_a_given_one(folder: Path) -> None:
    assert find_sae(str(folder))[:2] == ("my-sae", folder)
    assert find_sae(f"better={folder}")[:2] == ("better", folder)
    assert find_sae(f"{folder}/")[:2] == ("my-sae", folder)
    assert find_sae("mine=bundled")[:2] == ("mine", BUNDLED["bundled"])
    strange = folder.rename(folder.with_name("k=32"))
    assert find_sae(str(strange))[:2] == ("k=32", strange)
    assert find_sae(f"plain={strange}")[:2] == ("plain", strange)
    assert find_sae(f"plain={strange}?layer=3&k=32") == ("plain", strange, Options({"layer": "3", "k": "32"}))


def test_options_that_nobody_knows_or_that_have_no_meaning_are_refused(folder: Path) -> None:
    for query in (
        "colour=red",
        "k",
        "k=",
        "k=1&k=2",
        "k=-1",
        "k=1.5",
        "threshold=nan",
        "site=resid_post",
        "site=nowhere.3",
        "site=embed.5",
    ):
        with pytest.raises(SAELibraryError if query.startswith(("k=-", "k=1.", "t", "s")) else OptionError):
            open_entry(find_sae(f"{folder}?{query}"))
    with pytest.raises(SAELibraryError, match="input_scale has no meaning"):
        open_entry(find_sae(f"{folder}?input_scale=2"))


def test_options_are_part_of_what_an_sae_is(folder: Path) -> None:
    plain, moved = open_entry(find_sae(str(folder))), open_entry(find_sae(f"{folder}?site=resid_post.1"))
    assert moved.summary.site.layer == 1
    assert moved.sha256 != plain.sha256


def test_the_hash_is_of_all_that_decides_what_the_sae_computes(folder: Path) -> None:
    def sha256() -> str:
        return open_entry(SAEAddress("x", folder, Options())).sha256

    first, cfg, weights = sha256(), folder / "cfg.json", folder / "sae_weights.safetensors"
    assert sha256() == first
    cfg.write_text(cfg.read_text().replace('"apply_b_dec_to_input": true', '"apply_b_dec_to_input": false'))
    second = sha256()
    tensors = load_file(weights)
    save_file({**tensors, "b_enc": tensors["b_enc"] + 1}, weights)
    assert len({first, second, sha256()}) == 3
    (folder / "features.yaml").write_text('{"features": [{"index": 1, "name": "a"}]}')
    before = sha256()
    (folder / "features.yaml").write_text('{"features": [{"index": 1, "name": "b"}]}')
    assert sha256() == before, "names do not change what is computed"


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "x=/nowhere"])
def test_a_missing_sae_is_named_with_what_exists(name: str) -> None:
    with pytest.raises(SAELibraryError, match=r"neither a file or folder nor a bundled SAE \(bundled\)"):
        find_sae(name)


@pytest.mark.parametrize("name", ["a/b", "a b", ""])
def test_names_that_could_not_be_addressed_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(SAELibraryError, match="must be non-empty"):
        find_sae(f"{name}={folder}")


BAD_BOOKS = {
    "index outside": ([{"index": 24, "name": "x"}], "outside 0..23"),
    "negative index": ([{"index": -1, "name": "x"}], "outside 0..23"),
    "no name": ([{"index": 1}], "needs an index and a name"),
    "not an object": ([3], "needs an index and a name"),
    "a number for a name": ([{"index": 1, "name": "17"}], "cannot be a feature's name"),
    "a slash in a name": ([{"index": 1, "name": "a/b"}], "cannot be a feature's name"),
    "two of one name": ([{"index": 1, "name": "a"}, {"index": 2, "name": "a"}], "unique"),
    "two of one index": ([{"index": 1, "name": "a"}, {"index": 1, "name": "b"}], "unique"),
    "maximum of zero": ([{"index": 1, "name": "a", "max_act": 0}], "positive"),
    "a blank in a name": ([{"index": 1, "name": "a b"}], "cannot be a feature's name"),
    "a command in a name": ([{"index": 1, "name": "a'$(touch x)'"}], "cannot be a feature's name"),
    "an escape in a name": ([{"index": 1, "name": "a\x1b[2J"}], "cannot be a feature's name"),
    "a range of one end": ([{"index": 1, "name": "a", "clamp": [0.5]}], "lowest and the highest"),
    "maximum as text": ([{"index": 1, "name": "a", "max_act": "9"}], "positive"),
}


@pytest.mark.parametrize("features", [None, 5, "names", {"914": "golden-gate"}])
def test_a_feature_book_without_a_list_is_refused(folder: Path, features: Any) -> None:
    (folder / "features.yaml").write_text(json.dumps({"features": features}))
    with pytest.raises(SAELibraryError, match="features must be a list"):
        open_entry(SAEAddress("x", folder, Options()))


@pytest.mark.parametrize(("features", "says"), BAD_BOOKS.values(), ids=BAD_BOOKS.keys())
def test_a_bad_feature_book_is_refused(folder: Path, features: list[Any], says: str) -> None:
    (folder / "features.yaml").write_text(json.dumps({"features": features}))
    with pytest.raises(SAELibraryError) as raised:
        open_entry(SAEAddress("x", folder, Options()))
    assert says in str(raised.value)


def run_folder(folder: Path, sae: Path | None) -> Path:
    """What `saeclamp train` leaves: what it began with, where it got to, and at its end the SAE in a folder of its own."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "log.csv").write_text("step\n")
    save_file({"W_enc": torch.zeros(2, 2)}, folder / "checkpoint.safetensors")
    if sae is not None:
        shutil.copytree(sae, folder / "sae")
    return folder


def test_the_folder_of_a_run_its_files_and_a_folder_of_runs_lead_to_the_sae_inside(
    folder: Path, tmp_path: Path
) -> None:
    run = run_folder(tmp_path / "runs" / "tiny1", folder)
    inside = rf"the SAE lies inside: write tiny1={re.escape(str(run / 'sae'))}\."
    for what in (run, run / "checkpoint.safetensors", run / "log.csv", run.parent, f"mine={run}"):
        with pytest.raises(SAELibraryError, match=inside):
            find_sae(str(what))
    assert open_entry(find_sae(f"tiny1={run / 'sae'}")).name == "tiny1"


def test_a_run_that_has_not_ended_has_no_sae_yet(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "open", None)
    with pytest.raises(SAELibraryError, match="a training run that has not ended, so there is no SAE in it yet"):
        find_sae(str(run))
