"""Places on the hub, as people paste them, are told the catalogue's id of what is there, and of no other family."""

from __future__ import annotations

import pytest

from saeclamp_saes import find_sae
from saeclamp_saes.errors import SAELibraryError
from saeclamp_saes.library import catalogue, hub_places
from saeclamp_saes.library.hub import HubReference
from saeclamp_saes.library.reference import parse_reference

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "google/gemma-scope-2b-pt-transcoders"
ID = "gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76"
PAGE = f"https://huggingface.co/{REPOSITORY}"
INSIDE = "layer_0/width_16k/average_l0_76"

pytestmark = pytest.mark.usefixtures("library")


@pytest.mark.parametrize(
    "text",
    [
        f"{REPOSITORY}/{INSIDE}",
        f"{REPOSITORY}/{INSIDE}/params.npz",
        f"{REPOSITORY}/{INSIDE}?site=resid_post.3",
        f"{PAGE}/tree/main/{INSIDE}",
        f"{PAGE}/blob/main/{INSIDE}/params.npz",
        f"{PAGE}/resolve/main/{INSIDE}/params.npz?download=true",
        f"gg={PAGE}/tree/main/{INSIDE}/",
        f"huggingface.co/{REPOSITORY}/tree/main/{INSIDE}",
        f"hf.co/{REPOSITORY}/{INSIDE}",
        f"hf://{REPOSITORY}/tree/main/{INSIDE}",
        f"Google/Gemma-Scope-2b-pt-transcoders/{INSIDE}",
    ],
)
def test_a_place_in_a_known_repository_is_told_its_id(text: str) -> None:
    with pytest.raises(SAELibraryError, match="is a place on the hub, and the catalogue's id of it is") as raised:
        parse_reference(text)
    assert f" is {ID}: write that." in str(raised.value)


def test_a_commit_in_an_address_is_kept() -> None:
    with pytest.raises(SAELibraryError, match=f"{ID}@{COMMIT}: write that"):
        parse_reference(f"{PAGE}/tree/{COMMIT}/{INSIDE}")
    assert parse_reference(f"{ID}@{COMMIT}").reference == HubReference(REPOSITORY, INSIDE, COMMIT)


def test_a_place_without_a_commit_is_told_the_id_too() -> None:
    with pytest.raises(
        SAELibraryError, match=f"names no commit, .*: write the catalogue's id of it, {ID}, whose commit"
    ):
        find_sae(f"hf://{REPOSITORY}/{INSIDE}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (REPOSITORY, rf"with 26 SAEs of the catalogue: name one, such as {ID}, .*--catalogue gemma-scope-2b-pt-trans"),
        (f"{PAGE}/tree/main/layer_0", rf"id of it is {ID}: write that"),
        ("google/gemma-scope-2-4b-pt/transcoder_all", "such as gemma-scope-2-4b-pt-transcoders-all/layer_0_"),
        (f"{REPOSITORY}/layer_0/width_16k/average_l0_77", rf"no SAE at .*; nearest: .*{ID}"),
        (
            "google/gemma-scope-2b-pt-transcoder/layer_0",
            "nearest releases of the catalogue are gemma-scope-2b-pt-trans",
        ),
        (
            "https://huggingface.co/someone/saes/tree/main/sae",
            "does not list: run `saeclamp sae add hf://someone/saes@main/sae` once",
        ),
        ("someone/saes/sae", "neither a file or folder nor a bundled SAE"),
        ("https://huggingface.co/docs", "is no place on the hub that holds an SAE"),
    ],
)
def test_a_folder_or_a_near_miss_is_told_what_is_there(text: str, says: str) -> None:
    with pytest.raises(SAELibraryError, match=says) as raised:
        parse_reference(text)
    assert "\n" not in str(raised.value)


def test_every_place_of_the_catalogue_leads_back_to_an_id_of_its_own_repository_and_path() -> None:
    for sae in list(catalogue.list_saes().values())[::97]:
        (id,) = hub_places.ids_of(HubReference(sae.entry.repository, sae.path))
        found = catalogue.list_saes()[id]
        assert (found.entry.repository, found.path) == (sae.entry.repository, sae.path)
