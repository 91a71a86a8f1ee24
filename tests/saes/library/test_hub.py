"""Places on the hub, through the real hub client: from a cache laid out as it lays it out, and from a hub of our own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, hf_hub_download
from tests.saes.loaders.layouts import Written, llama_scope, mwhanna, sparsify
from tests.support.checkpoints import make_sae
from tests.support.local_hub import COMMIT, LocalHub

from saeclamp_saes import find_sae, open_entry
from saeclamp_saes.errors import SAELibraryError
from saeclamp_saes.library import user_library
from saeclamp_saes.library.add import add
from saeclamp_saes.library.hub import HubReference, download, list_files, pin_revision

OTHER_COMMIT = "f" * 40


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the client up as HF_HUB_CACHE, HF_HUB_OFFLINE and SAECLAMP_HOME would."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SAECLAMP_HOME", str(tmp_path / "home"))
    return cache


@pytest.fixture
def cached(own_folders: Path, tmp_path: Path) -> HubReference:
    """An SAE in a cache as `hf download` leaves it: blobs, linked to from the commit's snapshot, refs and a listing."""
    folder = make_sae(tmp_path / "made", layer=2, d_in=16, d_sae=24)
    repository = own_folders / "models--someone--saes"
    snapshot = repository / "snapshots" / COMMIT / "layer_2" / "small"
    for path in (repository / "refs", repository / "blobs", snapshot):
        path.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = repository / "blobs" / f"{number:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    files = {f"layer_2/small/{file.name}": {"size": file.stat().st_size, "blob_id": "0"} for file in folder.iterdir()}
    (repository / "trees").mkdir()
    (repository / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    return HubReference("someone/saes", "layer_2/small", COMMIT)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    root = tmp_path / "hub"
    make_sae(root / "someone" / "saes" / "layer_2" / "small", layer=2, d_in=16, d_sae=24)
    make_sae(root / "someone" / "saes" / "layer_3" / "small", layer=3, d_in=16, d_sae=24)
    (root / "someone" / "saes" / "layer_2" / "config.json").write_text("{}")
    (root / "someone" / "saes" / "layer_2" / "README.md").write_text("not needed")
    with LocalHub(root).running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield running


def test_a_place_is_written_with_a_repository_a_commit_and_a_path() -> None:
    assert HubReference.parse(f"hf://a/b@{COMMIT}/c/d.npz") == HubReference("a/b", "c/d.npz", COMMIT)
    assert HubReference.parse("hf://a/b@main") == HubReference("a/b", "", "main")
    assert HubReference.parse("hf://a/b-1.5/c:d=e/") == HubReference("a/b-1.5", "c:d=e", None)
    assert str(HubReference("a/b", "c", "main")) == "hf://a/b@main/c"
    assert HubReference("a/b", "c", COMMIT).is_pinned
    assert not HubReference("a/b", "c", COMMIT[:39]).is_pinned


@pytest.mark.parametrize(
    "text", ["hf://a", "hf://a/b/../c", "hf://../b", "hf://a/b//c", "hf://a/b/c\nd", "hf://a b/c", "hf://"]
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(SAELibraryError, match="is not a place on the hub"):
        HubReference.parse(text)


def test_a_cached_sae_at_a_commit_is_served_without_a_network(cached: HubReference) -> None:
    address = find_sae(str(cached))
    assert address.name == "saes--layer_2--small"
    entry = open_entry(address)
    assert (entry.summary.d_sae, entry.summary.site.layer) == (24, 2)


def test_without_a_commit_one_is_recorded_first(cached: HubReference) -> None:
    with pytest.raises(
        SAELibraryError, match=r"names no commit.*`saeclamp sae add hf://someone/saes/layer_2/small` once"
    ):
        find_sae("hf://someone/saes/layer_2/small")
    record = add("hf://someone/saes/layer_2/small", "mine", None)
    assert record.source == str(cached)
    for text in ("hf://someone/saes/layer_2/small", str(cached), "mine"):
        assert find_sae(text) == ("mine", record.location, find_sae("mine").options)
    assert find_sae("other=hf://someone/saes/layer_2/small").name == "other"
    with pytest.raises(SAELibraryError, match="not in the local cache, and HF_HUB_OFFLINE forbids the network"):
        find_sae(f"hf://someone/saes@{OTHER_COMMIT}/layer_2/small")


def test_the_library_shares_the_files_of_the_cache(cached: HubReference) -> None:
    record = add(str(cached), "mine", None)
    copy = record.location / "sae_weights.safetensors"
    assert not copy.is_symlink()
    assert copy.stat().st_nlink == 2


@pytest.mark.parametrize("revision", ["", "@main", "@v2", f"@{OTHER_COMMIT}"])
def test_what_is_not_cached_is_said_so_when_offline(revision: str) -> None:
    with pytest.raises(SAELibraryError, match=r"not in the local cache, and HF_HUB_OFFLINE forbids the network\.$"):
        add(f"hf://someone/other{revision}/x", "mine", None)


def test_a_hub_that_cannot_be_reached_leaves_the_cached_commit(
    cached: HubReference, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert pin_revision(HubReference("someone/saes", "layer_2/small")) == cached
    assert "cannot be reached" in said[0]
    assert COMMIT in said[0]
    with pytest.raises(
        SAELibraryError, match=r"hf://someone/new is not in the local cache, and the hub cannot be reached"
    ):
        pin_revision(HubReference("someone/new"))


def test_only_the_files_of_the_one_sae_are_downloaded(hub: LocalHub) -> None:
    record = add("hf://someone/saes/layer_2/small", None, None)
    assert record.name == "saes--layer_2--small"
    assert record.source == f"hf://someone/saes@{COMMIT}/layer_2/small"
    assert sorted(hub.served[:2]) == ["layer_2/config.json", "layer_2/small/cfg.json"]
    assert hub.served[2:] == ["layer_2/small/sae_weights.safetensors"]
    assert open_entry(find_sae("saes--layer_2--small")).summary.site.layer == 2


def test_what_was_downloaded_needs_no_network_again(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"hf://someone/saes@{COMMIT}/layer_3/small"
    assert open_entry(find_sae(place)).summary.site.layer == 3
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_entry(find_sae(place)).summary.site.layer == 3
    assert len(hub.served) == 2


@pytest.fixture
def layers(hub: LocalHub) -> str:
    """A repository with one layer a file."""
    for layer in (3, 12):
        mwhanna.write(hub.root / "someone" / "layers", layer=layer)
    return f"hf://someone/layers@{COMMIT}"


def test_each_layer_of_a_repository_is_its_own_whatever_the_cache_holds(hub: LocalHub, layers: str) -> None:
    for layer in (3, 12):
        record = add(f"{layers}?layer={layer}", None, None)
        assert record.name == f"layers--layer_{layer}"
        weights = Path("someone") / "layers" / f"layer_{layer}.safetensors"
        assert (record.location.name, record.location.read_bytes()) == (weights.name, (hub.root / weights).read_bytes())
    for place in (layers, "hf://someone/layers"):
        for layer in (3, 12):
            address = find_sae(f"{place}?layer={layer}")
            assert address.name == f"layers--layer_{layer}"
            assert open_entry(address).summary.site.layer == layer
    with pytest.raises(SAELibraryError, match="holds several SAEs"):
        find_sae(layers)
    user_library.remove("layers--layer_12")
    assert open_entry(find_sae(f"{layers}?layer=12")).summary.site.layer == 12
    with pytest.raises(SAELibraryError, match=r"run `saeclamp sae add hf://someone/layers\?layer=12` once"):
        find_sae("hf://someone/layers?layer=12")


def test_a_layer_that_contradicts_the_librarys_is_refused(layers: str) -> None:
    add(f"{layers}?layer=3", "three", None)
    assert find_sae("three?layer=3") == find_sae("three")
    with pytest.raises(
        SAELibraryError, match=r"'three' was added with layer=3, so it cannot be read with layer=12: add"
    ):
        find_sae("three?layer=12")


def test_a_layer_is_restored_by_what_the_library_says(layers: str) -> None:
    record = add(f"{layers}?layer=3", "three", None)
    record.location.unlink()
    with pytest.raises(SAELibraryError, match=rf"`saeclamp sae add '{layers}\?layer=3' --name three`"):
        user_library.check_unchanged(record, lambda path: record.files[path.relative_to(record.folder).as_posix()])


@pytest.mark.parametrize(
    ("write", "file", "architecture", "kind"),
    [
        (lambda folder: llama_scope.write(folder, layer=5), "checkpoints/final.safetensors", "jumprelu", "sae"),
        (lambda folder: sparsify.write(folder, run={"transcode": True}), "sae.safetensors", "topk", "transcoder"),
    ],
    ids=["Llama Scope", "sparsify"],
)
def test_weights_that_are_cached_without_their_configuration_are_not_the_whole(
    hub: LocalHub,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], Written],
    file: str,
    architecture: str,
    kind: str,
) -> None:
    folder = write(hub.root / "someone" / "partial").path
    path = folder.relative_to(hub.root / "someone" / "partial").as_posix()
    for name in (file, "cfg.json"):
        if (folder / name).is_file():
            hf_hub_download("someone/partial", f"{path}/{name}", revision=COMMIT)
    place = f"hf://someone/partial@{COMMIT}/{path}?site=mlp_in.5&site_out=mlp_out.5"
    place = place if kind == "transcoder" else place.partition("?")[0]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        SAELibraryError, match=r"may hold only a part of .*, and HF_HUB_OFFLINE .* whole: /.*/snapshots/"
    ):
        find_sae(place)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    summary = open_entry(find_sae(place)).summary
    assert (summary.architecture, summary.kind) == (architecture, kind)


def test_an_unreadable_listing_is_asked_for_again(hub: LocalHub) -> None:
    place = f"hf://someone/saes@{COMMIT}/layer_3/small"
    address = find_sae(place)
    (listing,) = (hub.root.parent / "home" / "listings").iterdir()
    kept = listing.read_text()
    for broken in ("{", "[]", '{"place": "hf://another", "sizes": {}}', '{"place": 3}', kept.replace("sizes", "size")):
        listing.write_text(broken)
        assert find_sae(place) == address
        assert listing.read_text() == kept


def test_a_folder_called_like_a_file_is_found(hub: LocalHub) -> None:
    (hub.root / "someone" / "saes" / "layer_3").rename(hub.root / "someone" / "saes" / "v5_layer_3.pt")
    (hub.root / "someone" / "saes" / "v5_layer_3.pt" / "small").rename(hub.root / "someone" / "saes" / "x.pt")
    reference = HubReference("someone/saes", "x.pt", COMMIT)
    assert list_files(reference).all == ("x.pt/cfg.json", "x.pt/sae_weights.safetensors")
    assert (download(reference, list_files(reference)) / "x.pt" / "cfg.json").is_file()


PROBLEMS = {
    "no such repository": (
        "hf://someone/nothing/x",
        r"The hub has no repository someone/nothing; if it is private, log in",
    ),
    "no such revision": ("hf://someone/saes@v9/layer_2/small", r"someone/saes has no revision v9\."),
    "no such commit": (f"hf://someone/saes@{OTHER_COMMIT}/layer_2/small", r"someone/saes has no revision ffff"),
    "no such folder": ("hf://someone/saes/layer_9", r"someone/saes has no layer_9 at revision 0123"),
    "no such file": ("hf://someone/saes/layer_2/w.npz", r"there is no layer_2/w\.npz\."),
    "no weights": ("hf://someone/saes/layer_2", r"layer_2 holds no weights: no file that ends in \.safetensors"),
    "a repository whose files are refused": (
        "hf://someone/gated/x",
        r"someone/gated is gated: accept its conditions at",
    ),
}


@pytest.mark.parametrize(("place", "says"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_what_the_hub_refuses_is_said_in_one_sentence(hub: LocalHub, place: str, says: str) -> None:
    make_sae(hub.root / "someone" / "gated" / "x", layer=1, d_in=16)
    hub.gated.add("someone/gated")
    with pytest.raises(SAELibraryError, match=says) as raised:
        add(place, None, None)
    assert "\n" not in str(raised.value)
    assert not [path for path in (hub.root.parent / "home" / "saes").iterdir() if path.name != ".lock"]


def test_a_pickle_is_not_downloaded_to_be_served_but_sent_to_the_converter(hub: LocalHub) -> None:
    folder = hub.root / "someone" / "pickled"
    folder.mkdir()
    torch.save({"W": torch.zeros(2)}, folder / "model-SAE-l3.pt")
    with pytest.raises(SAELibraryError, match=r"is a pickle, .*: run `saeclamp sae add hf://someone/pickled@.*` once"):
        find_sae(f"hf://someone/pickled@{COMMIT}/model-SAE-l3.pt")
    assert hub.served == []
