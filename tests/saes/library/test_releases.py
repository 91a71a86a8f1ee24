"""A checkpoint laid out as a release publishes it is added by its id, and read in the library where the catalogue says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from tests.saes.loaders.layouts import (
    Written,
    connor_rob,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    llama_scope,
    llama_scope_r1,
    mntss,
    mwhanna,
    qresearch,
    qwen_scope,
    saelens,
    sparsify,
)
from tests.support.local_hub import LocalHub

from saeclamp_saes import Options, Site, find_sae, open_entry, read_sae
from saeclamp_saes.errors import SAELibraryError
from saeclamp_saes.io.checkpoint import read_config
from saeclamp_saes.library import catalogue, user_library
from saeclamp_saes.library.add import add
from saeclamp_saes.sae import InputNorm

Write = Callable[[Path], Written]


def cross_layer(folder: Path, layer: int) -> Written:
    """The published ones read the stream before the norm."""
    written = mntss.write(folder, layer=layer)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("mlp.hook_in", "hook_resid_mid"))
    return written


RELEASES: dict[str, Write] = {
    "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71": lambda folder: gemma_scope.write(folder),
    "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_44": lambda folder: gemma_scope.write(folder, embedding=True),
    "gemma-scope-9b-pt-mlp/layer_3/width_16k/average_l0_13": lambda folder: gemma_scope.write(folder),
    "gemma-scope-2b-pt-att-canonical/layer_0/width_16k/canonical": lambda folder: gemma_scope.write(folder),
    "gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76": lambda folder: gemma_scope.write(folder),
    "gemma-scope-2-1b-pt-res/layer_13_width_16k_l0_big": lambda folder: gemma_scope_2.write(folder, layer=13),
    "gemma-scope-2-1b-pt-att-all/layer_4_width_16k_l0_small": lambda folder: gemma_scope_2.write(
        folder, layer=4, suite="attn_out_all"
    ),
    "gemma-scope-2-1b-pt-mlp/layer_13_width_16k_l0_big": lambda folder: gemma_scope_2.write(
        folder, layer=13, suite="mlp_out", config=False
    ),
    "gemma-scope-2-1b-pt-transcoders-all/layer_4_width_16k_l0_small_affine": lambda folder: gemma_scope_2.write(
        folder, layer=4, suite="transcoder_all", affine=True
    ),
    "llama_scope_lxr_8x/l15r_8x": lambda folder: llama_scope.write(folder, layer=15),
    "llama_scope_lxa_32x/l15a_32x": lambda folder: llama_scope.write(folder, layer=15, part="A"),
    "llama_scope_lxm_8x/l15m_8x": lambda folder: llama_scope.write(folder, layer=15, part="M"),
    "llama_scope_lxtc_8x/l15tc_8x": lambda folder: llama_scope.write(folder, layer=15, part="TC", length_out=1.5),
    "llama_scope_r1_distill/l15r_800m_slimpajama": lambda folder: llama_scope_r1.write(
        folder, layer=15, length_stored=False
    ),
    "qwen-scope-3-8b-base-w64k-l50/layer7": lambda folder: qwen_scope.write(folder, layer=7),
    "llama-3.1-8b-instruct-andyrdt/resid_post_layer_11_trainer_1": lambda folder: dictionary_learning.write(
        folder, layer=11
    ),
    "qwen3-8b-adamkarvonen/resid_post_layer_18_trainer_2": lambda folder: dictionary_learning.write(folder, layer=18),
    "goodfire-llama-3.1-8b-instruct/layer_19": lambda folder: goodfire.write(folder, layer=19),
    "deepseek-r1-distill-llama-8b-qresearch/blocks.19.hook_resid_post": lambda folder: qresearch.write(
        folder, layer=19
    ),
    "gpt2-small-hook-z-kk/blocks.0.hook_z": lambda folder: connor_rob.write(folder, layer=0),
    "smollm2-135m-mlp-eai/layers.15.mlp": lambda folder: sparsify.write(folder, layer=15, module="layers.{layer}.mlp"),
    "llama-3-8b-res-eai/layers.10": lambda folder: sparsify.write(folder, layer=10, run={"model": "x"}),
    "mwhanna-qwen3-4b-transcoders/layer_3": lambda folder: mwhanna.write(folder, layer=3),
    "mntss-gemma-2-2b-2.5m-clt/layer_2": lambda folder: cross_layer(folder, layer=2),
    "gpt2-small-res-jb/blocks.8.hook_resid_pre": lambda folder: saelens.write(
        folder / "x", layer=8, hook="hook_resid_pre", version=5, model_name="gpt2-small"
    ),
    "gpt2-small-resid-mid-v5-32k/blocks.3.hook_resid_mid": lambda folder: saelens.write(
        folder / "x", layer=3, hook="hook_resid_mid", architecture="topk", model_name="gpt2-small"
    ),
    "gemma-2b-res-jb/blocks.12.hook_resid_post": lambda folder: saelens.write(
        folder / "x", layer=12, normalize="expected_average_only_in"
    ),
    "mistral-7b-res-wg/blocks.16.hook_resid_pre": lambda folder: saelens.write(
        folder / "x", layer=16, hook="hook_resid_pre"
    ),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setenv("SAECLAMP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with LocalHub(tmp_path / "hub").running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield running


def publish(written: Written, target: Path) -> None:
    """Bring a checkpoint to where its release keeps it; of a single file, with what lies around it."""
    is_file = written.path.is_file() or target.suffix == ".safetensors"
    folder = written.path.parent if written.path.is_file() else written.path
    shutil.copytree(folder, target.parent if is_file else target, dirs_exist_ok=True)
    if (run := folder.parent / "config.json").is_file():
        shutil.copy(run, target.parent)
    assert target.is_file() == is_file


@pytest.mark.parametrize(("id", "write"), RELEASES.items(), ids=RELEASES.keys())
def test_a_release_is_read_where_the_catalogue_says(
    hub: LocalHub, tmp_path: Path, said: list[str], id: str, write: Write
) -> None:
    sae = catalogue.find_catalogue_sae(id)
    assert sae is not None
    publish(write(tmp_path / "written"), hub.root / sae.entry.repository / sae.path)
    record = add(id, "it", None)
    assert not [line for line in said if "catalogue says" in line]
    summary = open_entry(find_sae("it")).summary
    assert (summary.reads[0], summary.writes[0], summary.unit) == (sae.reads, sae.writes, sae.entry.unit)
    read_as = read_config(record.location / "cfg.json")["read_as"] if sae.entry.pickled else summary.format
    assert read_as == sae.entry.format
    assert bool(record.converted_from) == sae.entry.pickled
    assert record.model == sae.entry.model.id


def test_an_id_is_downloaded_and_its_commit_recorded_when_it_is_first_used(
    hub: LocalHub, tmp_path: Path, said: list[str]
) -> None:
    id = "gemma-scope-2b-pt-res/layer_20/width_16k/l0_71"
    release = catalogue.find_catalogue_sae(id)
    assert release is not None
    publish(gemma_scope.write(tmp_path / "written", layer=20), hub.root / release.entry.repository / release.path)
    first = open_entry(find_sae(id))
    assert (first.summary.site, first.name) == (Site("resid_post", 20), find_sae(id).name)
    assert [line for line in said if "at commit" in line]
    (record,) = user_library.records()
    assert record.source.startswith("hf://google/gemma-scope-2b-pt-res@")
    for file in (hub.root / release.entry.repository).rglob("params.npz"):
        file.write_bytes(b"another push")
    assert open_entry(find_sae(id)).sha256 == first.sha256
    assert open_entry(find_sae(f"short={id}")).name == "short"


def test_an_id_is_read_as_the_catalogue_says_also_when_its_files_were_added_by_their_place(
    hub: LocalHub, tmp_path: Path
) -> None:
    id = "mistral-7b-res-wg/blocks.16.hook_resid_pre"
    release = catalogue.find_catalogue_sae(id)
    assert release is not None
    place = f"hf://{release.entry.repository}/{release.path}"
    publish(RELEASES[id](tmp_path / "written"), hub.root / release.entry.repository / release.path)
    add(place, "by-place", None)
    for name in ("by-place", "by-id"):
        by_id, by_place = find_sae(id), find_sae(place)
        assert (by_id.name, by_place.name) == (name, "by-place")
        assert read_sae(by_id.path, by_id.options).input_norm == InputNorm(scale="l2")
        assert read_sae(by_place.path, by_place.options).input_norm == InputNorm()
        if name == "by-place":
            add(id, "by-id", None)
    with pytest.raises(SAELibraryError, match="'by-id' was added with normalize=constant_norm_rescale"):
        find_sae("by-id?normalize=none")


def test_an_id_of_a_pickle_is_not_converted_by_serving_it(hub: LocalHub) -> None:
    with pytest.raises(SAELibraryError, match="saeclamp sae add goodfire"):
        find_sae("goodfire-llama-3.1-8b-instruct/layer_19")
    assert not [*user_library.records()]


def test_what_the_files_do_not_say_is_in_the_options() -> None:
    told = {
        id.partition("/")[0]: sae.options
        for id in RELEASES
        if (sae := catalogue.find_catalogue_sae(id)) and sae.options
    }
    assert json.loads(json.dumps(told)) == {
        "llama_scope_r1_distill": {"input_scale": "5.52933"},
        "gpt2-small-res-jb": {"center": "yes"},
        "gpt2-small-resid-mid-v5-32k": {"center": "no"},
        "gemma-2b-res-jb": {"input_scale": "0.213819"},
        "mistral-7b-res-wg": {"normalize": "constant_norm_rescale"},
    }


def test_a_normalisation_that_the_files_leave_out_can_be_given(tmp_path: Path) -> None:
    written = saelens.write(tmp_path / "x", layer=16)
    assert read_sae(written.path).input_norm == InputNorm()
    assert read_sae(written.path, Options({"normalize": "constant_norm_rescale"})).input_norm == InputNorm(scale="l2")
