"""The catalogue's facts fit together, and its ids lead where the releases keep their files."""

from __future__ import annotations

import json
import re
from typing import get_args

import pytest

from saeclamp_saes.errors import SAELibraryError
from saeclamp_saes.library import catalogue
from saeclamp_saes.library.catalogue import CatalogueEntry
from saeclamp_saes.library.hub import HubReference
from saeclamp_saes.library.reference import parse_reference
from saeclamp_saes.library.user_library import is_library_name
from saeclamp_saes.loaders import FORMATS
from saeclamp_saes.options import OPTIONS, Options
from saeclamp_saes.sae import Unit
from saeclamp_saes.sites import POINTS, Site

ENTRIES = catalogue.list_entries()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_library(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAECLAMP_HOME", str(tmp_path))


def test_it_has_the_main_releases() -> None:
    assert len({entry.release for entry in ENTRIES}) > 170
    assert sum(entry.num_saes for entry in ENTRIES) > 13000
    models = {entry.model.id for entry in ENTRIES}
    assert {"google/gemma-2-2b", "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B", "HuggingFaceTB/SmolLM2-135M"} <= models


def test_every_format_is_one_that_is_read() -> None:
    assert {entry.format for entry in ENTRIES} <= {layout.name for layout in FORMATS}


def test_every_entry_fits_its_model() -> None:
    for entry in ENTRIES:
        check_entry(entry)


def check_entry(entry: CatalogueEntry) -> None:
    assert entry.choices
    assert all(0 <= layer < entry.model.num_layers for layer in entry.choices)
    assert all(choices and len(set(choices)) == len(choices) for choices in entry.choices.values())
    assert {entry.reads, entry.writes} <= set(POINTS)
    assert entry.d_in == entry.model.d_model or entry.reads == "attn_z"
    assert entry.unit in get_args(Unit)
    assert entry.source


def test_templates_expand_to_places_options_and_sites() -> None:
    for sae in catalogue.list_saes().values():
        assert not re.search(r"[{}\s]", sae.id + sae.path)
        reference = HubReference(sae.entry.repository, sae.path, COMMIT)
        assert HubReference.parse(str(reference)) == reference
        for site in (sae.reads, sae.writes):
            assert Site.parse(str(site)) == site
        assert sae.options.keys() <= OPTIONS.keys()
        assert Options.parse(str(Options(sae.options))) == Options(sae.options)


def test_ids_are_unique() -> None:
    assert len(catalogue.list_saes()) == sum(entry.num_saes for entry in ENTRIES)


def test_names_to_serve_under_are_unique_and_fit_for_the_library() -> None:
    names = [parse_reference(id).name for id in catalogue.list_saes()]
    assert len(set(names)) == len(names)
    assert not [name for name in names if not is_library_name(name)]


def test_files_lie_in_the_repository_once_but_for_those_that_have_two_names() -> None:
    places = [(sae.entry.repository, sae.path) for sae in catalogue.list_saes().values() if "canonical" not in sae.id]
    assert len(places) == len(set(places))


PLACES = {
    "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71": (
        "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", "resid_post 20", "resid_post 20"),
    "gemma-scope-2b-pt-res/layer_20/width_16k/l0_71": (
        "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", "resid_post 20", "resid_post 20"),
    "gemma-scope-2b-pt-res-canonical/layer_20/width_16k/canonical": (
        "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", "resid_post 20", "resid_post 20"),
    "gemma-scope-2b-pt-att/layer_0/width_16k/l0_104": (
        "google/gemma-scope-2b-pt-att", "layer_0/width_16k/average_l0_104", "attn_z 0", "attn_z 0"),
    "gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76": (
        "google/gemma-scope-2b-pt-transcoders", "layer_0/width_16k/average_l0_76", "mlp_in_no_gain 0", "mlp_out 0"),
    "gemma-scope-2-4b-it-res/layer_9_width_16k_l0_big": (
        "google/gemma-scope-2-4b-it", "resid_post/layer_9_width_16k_l0_big", "resid_post 9", "resid_post 9"),
    "llama_scope_lxr_8x/l15r_8x": (
        "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x", "resid_post 15", "resid_post 15"),
    "llama_scope_lxr_8x/Llama3_1-8B-Base-L15R-8x": (
        "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x", "resid_post 15", "resid_post 15"),
    "gpt2-small-res-jb/blocks.8.hook_resid_pre": (
        "jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre", "resid_post 7", "resid_post 7"),
    "gpt2-small-hook-z-kk/blocks.5.hook_z": (
        "ckkissane/attn-saes-gpt2-small-all-layers",
        "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.00e+00_ds49152_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9.pt",
        "attn_z 5", "attn_z 5"),
    "goodfire-llama-3.1-8b-instruct/layer_19": (
        "Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "Llama-3.1-8B-Instruct-SAE-l19.pth", "resid_post 19", "resid_post 19"),
    "smollm2-135m-mlp-eai/layers.15.mlp": (
        "EleutherAI/sae-SmolLM2-135M-64x", "layers.15.mlp", "mlp_out_raw 15", "mlp_out_raw 15"),
    "mwhanna-qwen3-4b-transcoders/layer_3": ("mwhanna/qwen3-4b-transcoders", "layer_3.safetensors", "mlp_in 3", "mlp_out 3"),
}  # fmt: skip


@pytest.mark.parametrize(("id", "place"), PLACES.items(), ids=PLACES.keys())
def test_an_id_leads_to_a_place(id: str, place: tuple[str, str, str, str]) -> None:
    sae = catalogue.find_catalogue_sae(id)
    assert sae is not None
    assert (sae.entry.repository, sae.path, str(sae.reads), str(sae.writes)) == place
    assert parse_reference(f"{id}@{COMMIT}").reference == HubReference(place[0], place[1], COMMIT)


def test_what_a_reader_has_to_be_told_comes_along() -> None:
    found = parse_reference("llama_scope_r1_distill/l3r_800m_slimpajama")
    assert found.options.values == {"input_scale": "20.258786"}
    assert parse_reference("llama_scope_r1_distill/l3r_800m_slimpajama?input_scale=2").options.values == {
        "input_scale": "2"
    }
    assert parse_reference("gpt2-small-res-jb/blocks.8.hook_resid_pre").options.values == {"center": "yes"}


def test_names_to_serve_under_are_short_and_telling() -> None:
    assert (
        parse_reference("gemma-scope-2b-pt-res/layer_20/width_16k/l0_71").name
        == "gemma-scope-2b-pt-res--layer_20--16k--l0_71"
    )
    assert parse_reference("qwen-scope-3-8b-base-w64k-l50/layer7").name == "qwen-scope-3-8b-base-w64k-l50--layer7"
    assert parse_reference("gg=gemma-scope-2b-pt-res/layer_20/width_16k/l0_71").name == "gg"


NEAR = {
    "gemma-scope-2b-pt-res": r"is a release of 316 SAEs: name one, such as gemma-scope-2b-pt-res/layer_0/width_16k/",
    "gemma-scope-2b-pt-res/layer_20/width_16k": r"has no SAE 'layer_20/width_16k'; nearest: .*/layer_20/width_16k/av",
    "gemma-scope-2b-pt-res/layer_20/width_16k/l0_72": r"nearest: gemma-scope-2b-pt-res/layer_\d+/width_16k/average_l0_72",
    "gemma-scope-2b-pt-re/layer_20/width_16k/l0_71": r"nearest: .*gemma-scope-2b-pt-res",
    "llama_scope_lxr_8": r"nearest: llama_scope_lxr_8x",
    "bundle": r"nearest: bundled",
}


@pytest.mark.parametrize(("text", "says"), NEAR.items(), ids=NEAR.keys())
def test_what_is_not_there_is_answered_with_what_is_near(text: str, says: str) -> None:
    with pytest.raises(SAELibraryError, match=says) as raised:
        parse_reference(text)
    assert "\n" not in str(raised.value)


def test_the_facts_are_ordered_and_plain_json() -> None:
    for path in catalogue.RELEASES.glob("*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        assert "releases" in document or "models" in document, path
