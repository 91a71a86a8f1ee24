"""What `saeclamp train` wrote keeps its identity in sae-lens: where it sits, of which model, on which texts' form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.saes.loaders.layouts.hub import Lens

from saeclamp_saes import find_sae
from saeclamp_saes.library.add import add


def metadata_of(lens: Lens, folder: Path) -> dict[str, object]:
    metadata: dict[str, object] = lens.SAE.load_from_disk(folder).cfg.metadata.to_dict()
    assert metadata == json.loads((folder / "cfg.json").read_text())["metadata"]
    return metadata


def test_the_bundled_sae_is_known_for_what_it_is(lens: Lens) -> None:
    metadata = metadata_of(lens, find_sae("bundled").path)
    assert metadata["hook_name"] == "blocks.23.hook_resid_post"
    assert metadata["model_name"] == "smollm2-135m-instruct"
    assert (metadata["context_size"], metadata["prepend_bos"]) == (256, False)


def test_model_class_and_hook_belong_to_one_library(lens: Lens) -> None:
    """sae-lens looks `blocks.23...` up in a HookedTransformer, and module names in a model of transformers."""
    metadata = metadata_of(lens, find_sae("bundled").path)
    assert metadata["model_class_name"] == "HookedTransformer"


def test_a_copy_in_the_library_is_known_too(lens: Lens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAECLAMP_HOME", str(tmp_path / "home"))
    record = add(str(find_sae("bundled").path), "copy", None)
    assert metadata_of(lens, record.location)["hook_name"] == "blocks.23.hook_resid_post"
