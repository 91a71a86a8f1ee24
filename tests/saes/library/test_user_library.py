"""SAEs are added whole or not at all, are checked when they are used, and only they are removed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.saes.loaders.layouts import gemma_scope, goodfire
from tests.support.bundled import D_SAE
from tests.support.checkpoints import make_sae
from tests.support.library_fixture import kept

from saeclamp_saes import find_sae, open_entry
from saeclamp_saes.errors import SAELibraryError
from saeclamp_saes.io.hashes import sha256_of
from saeclamp_saes.labelling.table import labels_path
from saeclamp_saes.library import user_library
from saeclamp_saes.library.add import add, listed_summary
from saeclamp_saes.loaders import summarize

pytestmark = pytest.mark.usefixtures("library")


def test_the_library_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAECLAMP_HOME", "/one")
    monkeypatch.setenv("XDG_DATA_HOME", "/two")
    assert user_library.library_folder() == Path("/one/saes")
    monkeypatch.delenv("SAECLAMP_HOME")
    assert user_library.library_folder() == Path("/two/saeclamp/saes")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert user_library.library_folder() == Path.home() / ".local" / "share" / "saeclamp" / "saes"


def test_an_added_sae_is_found_by_name_and_is_the_same(folder: Path, library: Path) -> None:
    (folder / "features.yaml").write_text(json.dumps({"features": [{"index": 3, "name": "sea"}]}))
    record = add(str(folder), None, "some/model")
    added, original = open_entry(find_sae("my-sae")), open_entry(find_sae(str(folder)))
    assert (added.sha256, added.features) == (original.sha256, original.features)
    assert listed_summary(added.summary) == listed_summary(original.summary)
    assert library / "my-sae" in added.path.parents
    assert (record.source, record.model, record.options) == (str(folder), "some/model", {})
    assert record.summary["reads"] == ["resid_post 2"]
    assert list(user_library.records()) == [record]
    assert find_sae("better=my-sae").name == "better"


def test_labels_and_curves_come_along_and_may_change_there(folder: Path) -> None:
    (folder / "labels.parquet").write_bytes(b"labels")
    (folder / "calibration.json").write_bytes(b"curves")
    record = add(str(folder), None, None)
    assert (record.location / "labels.parquet").read_bytes() == b"labels"
    assert (record.location / "calibration.json").read_bytes() == b"curves"
    (record.location / "labels.parquet").write_bytes(b"new labels")
    open_entry(find_sae("my-sae"))
    assert (folder / "labels.parquet").read_bytes() == b"labels"


def test_options_are_kept_and_can_be_added_to_but_not_contradicted(folder: Path) -> None:
    record = add(f"{folder}?site=resid_post.1", "moved", None)
    assert record.options == {"site": "resid_post.1"}
    assert open_entry(find_sae("moved")).summary.site.layer == 1
    assert find_sae("moved?site=resid_post.1") == find_sae("moved")
    with pytest.raises(
        SAELibraryError, match=r"'moved' was added with site=resid_post\.1, so it cannot be read with site="
    ):
        find_sae("moved?site=resid_post.5")
    add(str(folder), "plain", None)
    assert open_entry(find_sae("plain?site=resid_post.5")).summary.site.layer == 5


def test_one_layer_of_several_is_added_as_a_file(folder: Path) -> None:
    (folder / "sae_weights.safetensors").rename(folder / "layer_4.safetensors")
    (folder / "layer_5.safetensors").write_bytes((folder / "layer_4.safetensors").read_bytes())
    record = add(f"{folder}?layer=4", "four", None)
    assert sorted(record.files) == ["some/my-sae/cfg.json", "some/my-sae/layer_4.safetensors"]
    assert open_entry(find_sae("four")).summary.weights == (record.location,)


def test_of_several_files_labels_only_its_own_come_along(folder: Path) -> None:
    (folder / "sae_weights.safetensors").rename(folder / "layer_4.safetensors")
    (folder / "layer_5.safetensors").write_bytes((folder / "layer_4.safetensors").read_bytes())
    for layer in (4, 5):
        (folder / f"layer_{layer}.labels.parquet").write_text(f"of layer {layer}")
    record = add(f"{folder}?layer=5", "five", None)
    assert labels_path(record.location).read_text() == "of layer 5"
    assert [path.name for path in record.location.parent.glob("*.parquet")] == ["layer_5.labels.parquet"]


def test_the_names_of_folders_are_kept_as_far_up_as_it_is_read_by_them(tmp_path: Path, library: Path) -> None:
    written = gemma_scope.write(tmp_path, layer=5)
    record = add(str(written.path), "gemma", None)
    release = written.path.parents[2].name
    assert record.path == f"{release}/layer_5/width_16k/{written.path.name}"
    assert sorted(path.name for path in record.folder.iterdir()) == [release, "source.json"]
    assert listed_summary(open_entry(find_sae("gemma")).summary) == listed_summary(summarize(written.path))


def test_folders_too_far_above_are_asked_for_by_the_path_that_was_named(tmp_path: Path, library: Path) -> None:
    path = gemma_scope.write(tmp_path, layer=5, release="gemma-scope-2b-pt-transcoders").path
    deep = path.rename(path.with_name("a")) / "b" / "c"
    deep.mkdir(parents=True)
    (deep.parents[1] / "params.npz").rename(deep / "params.npz")
    with pytest.raises(SAELibraryError, match=rf"^{deep} is read by .*\?site=mlp_in_no_gain\.5&site_out=mlp_out\.5\.$"):
        add(str(deep), "deep", None)
    assert kept(library) == []


def test_a_path_that_leads_up_is_kept_inside(folder: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "elsewhere").mkdir()
    monkeypatch.chdir(folder.parent / "elsewhere")
    record = add("../my-sae", "mine", None)
    assert (record.path, record.source) == ("some/my-sae", str(folder))
    assert add("../my-sae/sae_weights.safetensors", "again", None).files == record.files
    assert kept(library) == ["again", "mine"]


def test_a_bundled_sae_comes_first_then_the_library_then_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(str(folder), "mine", None)
    add(str(folder), "bundled", None)
    monkeypatch.chdir(tmp_path)
    make_sae(tmp_path / "mine", layer=3, d_in=16)
    make_sae(tmp_path / "theirs", layer=3, d_in=16)
    assert open_entry(find_sae("bundled")).summary.d_sae == D_SAE
    assert open_entry(find_sae("mine")).summary.site.layer == 2
    assert open_entry(find_sae("./mine")).summary.site.layer == 3
    assert open_entry(find_sae("theirs")).summary.site.layer == 3


@pytest.mark.parametrize("file", ["sae_weights.safetensors", "cfg.json"])
def test_a_changed_file_is_not_used(folder: Path, file: str) -> None:
    record = add(str(folder), "mine", None)
    path = record.location / file
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:] if file.endswith("s") else content + b" ")
    for text in ("mine", str(record.location)):
        with pytest.raises(
            SAELibraryError, match=rf"SAE 'mine': some/my-sae/{file} is not the one that was added; restore it"
        ):
            open_entry(find_sae(text))


def test_a_lost_file_is_named(folder: Path) -> None:
    add(f"{folder}?site=resid_post.2", "mine", None)
    record = user_library.record("mine")
    assert record is not None
    with pytest.raises(SAELibraryError, match="is missing"):
        user_library.check_unchanged(replace(record, files={"some/gone.json": "0"}), lambda path: "0")


def test_features_may_be_named_after_it_was_added(folder: Path) -> None:
    record = add(str(folder), "mine", None)
    (record.location / "features.yaml").write_text(json.dumps({"features": [{"index": 3, "name": "sea"}]}))
    assert open_entry(find_sae("mine")).index_of("sea") == 3


@pytest.mark.parametrize(
    "name", ["", ".hidden", "..", "a/b", "../x", "a..b", "a b", "a\nb", "a\x00b", "-x", "k=32", "x?", "ä" * 121]
)
def test_names_that_could_lead_elsewhere_are_refused(folder: Path, library: Path, name: str) -> None:
    with pytest.raises(SAELibraryError, match="cannot be a name in the library"):
        add(str(folder), name or " ", None)
    with pytest.raises(SAELibraryError, match="cannot be a name in the library"):
        user_library.remove(name)
    assert user_library.record(name) is None
    assert kept(library) == []


def test_a_taken_name_is_refused(folder: Path) -> None:
    add(str(folder), "mine", None)
    with pytest.raises(SAELibraryError, match="The library has an SAE 'mine' already"):
        add(str(folder), "mine", None)
    with pytest.raises(SAELibraryError, match="'mine' is in your library already"):
        add("mine", "again", None)


def test_a_pickle_is_converted_and_keeps_its_features_and_labels(tmp_path: Path, library: Path) -> None:
    written = goodfire.write(tmp_path / "pickled", layer=3)
    written.path.with_name(f"{written.path.stem}.labels.parquet").write_bytes(b"labels")
    (tmp_path / "pickled" / "features.yaml").write_text(json.dumps({"features": [{"index": 3, "name": "sea"}]}))
    record = add(str(written.path), "gf", None)
    entry = open_entry(find_sae("gf"))
    assert (entry.summary.format, str(entry.summary.site), entry.index_of("sea")) == ("saeclamp", "resid_post 3", 3)
    assert labels_path(record.location).read_bytes() == b"labels"
    assert record.converted_from == {f"pickled/{written.path.name}": sha256_of(written.path)}
    assert not list(library.rglob("*.pth"))


def test_a_pickle_that_would_run_code_leaves_nothing(tmp_path: Path, library: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "it-ran"),)

    torch.save({"encoder_linear.weight": Bomb()}, tmp_path / "x-SAE-l3.pth")
    with pytest.raises(SAELibraryError):
        add(str(tmp_path / "x-SAE-l3.pth"), "bomb", None)
    assert not (tmp_path / "it-ran").exists()
    assert kept(library) == []


def test_what_cannot_be_read_leaves_nothing(folder: Path, library: Path) -> None:
    (folder / "cfg.json").write_text("{}")
    with pytest.raises(SAELibraryError):
        add(str(folder), "mine", None)
    assert kept(library) == []


def test_a_bad_feature_book_leaves_nothing(folder: Path, library: Path) -> None:
    (folder / "features.yaml").write_text(json.dumps({"features": [{"index": 99, "name": "x"}]}))
    with pytest.raises(SAELibraryError, match="outside"):
        add(str(folder), "mine", None)
    assert kept(library) == []


def test_a_removed_one_is_gone_and_the_original_is_not(folder: Path, library: Path) -> None:
    add(str(folder), "mine", None)
    user_library.remove("mine")
    assert kept(library) == []
    assert (folder / "sae_weights.safetensors").is_file()
    with pytest.raises(SAELibraryError, match="is no SAE that was added"):
        user_library.remove("mine")


def test_links_lead_nowhere(folder: Path, library: Path, tmp_path: Path) -> None:
    record = add(str(folder), "mine", None)
    (library / "link").symlink_to(record.folder)
    (library / "outside").symlink_to(folder)
    (record.folder / "tail").symlink_to(folder)
    assert [one.name for one in user_library.records()] == ["mine"]
    for name in ("link", "outside"):
        assert user_library.record(name) is None
        with pytest.raises(SAELibraryError, match="nothing was removed"):
            user_library.remove(name)
    user_library.remove("mine")
    assert (folder / "sae_weights.safetensors").is_file()
    assert kept(library) == ["link", "outside"]


def test_a_folder_that_was_not_added_stays(library: Path) -> None:
    (library / "own").mkdir(parents=True)
    (library / "own" / "thesis.txt").write_text("mine")
    with pytest.raises(SAELibraryError, match="is no SAE that was added to the library; nothing was removed"):
        user_library.remove("own")
    assert (library / "own" / "thesis.txt").is_file()


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../../elsewhere"},
        {"files": {"../x": "0"}},
        {"files": {"/etc/passwd": "0"}},
        {"summary": None, "path": 3},
    ],
)
def test_a_record_that_names_files_elsewhere_is_refused(folder: Path, change: dict[str, Any]) -> None:
    record = add(str(folder), "mine", None)
    path = record.folder / "source.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SAELibraryError, match=r"names files outside|not a readable record"):
        find_sae("mine")


def test_a_broken_record_is_named_with_what_to_do(folder: Path) -> None:
    record = add(str(folder), "mine", None)
    (record.folder / "source.json").write_text("{")
    with pytest.raises(SAELibraryError, match=r"is not a readable record .* add the SAE again"):
        find_sae("mine")
    add(str(folder), "other", None)
    assert [one.name for one in user_library.records()] == ["other"]
    user_library.remove("mine")
