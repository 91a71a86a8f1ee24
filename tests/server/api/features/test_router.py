"""What the server says of its SAEs and their features, on the bundled SAE."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from tests.support.bundled import D_SAE, ENTRY, GOLDEN_GATE, LAYER, MAX_ACT, UNNAMED
from tests.support.lookup_app import FIT, app

from saeclamp.types import StoredFeature, StoredSAE
from saeclamp_saes.labelling.label_file import LabelFile
from saeclamp_saes.labelling.table import labels_path


def get(path: str, of: FastAPI) -> tuple[int, Any]:
    async def ask() -> tuple[int, Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(of), base_url="http://test") as http:
            response = await http.get(path)
            return response.status_code, response.json()

    return asyncio.run(ask())


def test_saes_are_listed_and_looked_up() -> None:
    served = app()
    status, listed = get("/v1/saes", served)
    assert (status, listed["object"], [sae["name"] for sae in listed["data"]]) == (200, "list", ["bundled"])
    status, sae = get("/v1/saes/bundled", served)
    assert (status, [sae]) == (200, listed["data"])
    known = StoredSAE.model_validate(sae)
    assert (known.writes, known.d_sae, known.resid_norm) == ((f"resid_post {LAYER}",), D_SAE, 250.0)
    assert (known.sha256, known.fit) == (f"sha256:{ENTRY.sha256}", FIT)
    assert "golden-gate" in known.named
    assert known.labels is not None
    assert known.labels.num_tokens > 0


def test_a_feature_is_found_by_name_and_by_index_with_all_that_lies_beside_the_sae() -> None:
    served = app()
    status, by_name = get("/v1/features/bundled/golden-gate", served)
    assert (status, by_name) == (200, get(f"/v1/features/bundled/{GOLDEN_GATE}", served)[1])
    feature = StoredFeature.model_validate(by_name)
    note = ENTRY.features[GOLDEN_GATE]
    assert (feature.feature, feature.name, feature.max_act) == (f"bundled/{GOLDEN_GATE}", "golden-gate", MAX_ACT)
    assert (feature.green_zone, feature.best) == (note.clamp, note.best)
    assert feature.label is not None
    assert (feature.label.text, feature.label.source) == (note.description, "feature book")
    curves = json.loads((ENTRY.path / "calibration.json").read_text())["features"]
    assert feature.curve is not None
    assert [*feature.curve] == curves[str(GOLDEN_GATE)]["curve"]
    labelled = LabelFile(labels_path(ENTRY.path))[GOLDEN_GATE]
    assert (feature.density, feature.output_score) == (labelled.density, labelled.output_score)
    assert feature.examples is not None
    assert [one.peak_act for one in feature.examples] == [one.peak_act for one in labelled.examples]
    assert feature.top_logits is not None
    assert [one.token for one in feature.top_logits] == [one.token for one in labelled.top_logits or ()]
    assert feature.neighbours is not None
    assert [one.feature for one in feature.neighbours] == [f"bundled/{one.index}" for one in labelled.neighbours]


def test_the_counted_label_that_holds_comes_before_those_that_do_not() -> None:
    served, labels = app(), LabelFile(labels_path(ENTRY.path))
    seen = set()
    for index in range(D_SAE):
        labelled = labels[index]
        if index in ENTRY.features or labelled.explanation or labelled.kind == "none" or labelled.kind in seen:
            continue
        seen.add(labelled.kind)
        first, *_ = get(f"/v1/features/bundled/{index}", served)[1]["labels"]
        assert (first["source"], first["text"], first["score"]) == (
            labelled.kind,
            labelled.label,
            labelled.label_score,
        )
        if len(seen) == 3:
            return
    assert seen


def test_without_labels_and_a_book_little_is_known_and_nothing_is_made_up(tmp_path: Path) -> None:
    bare = replace(ENTRY, path=tmp_path, features={})
    status, feature = get(f"/v1/features/bundled/{UNNAMED}", app(bare, labelled=False))
    assert status == 200
    known = {key: value for key, value in feature.items() if value is not None}
    assert known == {
        "object": "feature",
        "feature": f"bundled/{UNNAMED}",
        "sae": "bundled",
        "index": UNNAMED,
        "labels": [],
    }


@pytest.mark.parametrize(
    ("path", "code", "says"),
    [
        ("/v1/saes/bundle", "unknown_sae", "Did you mean 'bundled'?"),
        ("/v1/features/bundle/3", "unknown_sae", "Did you mean 'bundled'?"),
        ("/v1/features/bundled/golden-gat", "unknown_feature", "Did you mean 'golden-gate'?"),
        (f"/v1/features/bundled/{D_SAE}", "feature_out_of_range", f"0 to {D_SAE - 1}"),
        (f"/v1/features/bundled/{'9' * 5000}", "feature_out_of_range", f"there is no {'9' * 20}..."),
        (f"/v1/features/bundled/{'é' * 5000}", "unknown_feature", "Named: golden-gate"),
        ("/v1/features/bundled/-1", "unknown_feature", "or give an index"),
    ],
)
def test_what_there_is_not_is_a_404_in_openais_envelope(path: str, code: str, says: str) -> None:
    status, answer = get(path, app())
    assert (status, answer["error"]["code"]) == (404, code)
    assert says in answer["error"]["message"]


def test_curves_of_other_weights_are_left_out_and_that_is_said(tmp_path: Path, said: list[str]) -> None:
    shutil.copy(ENTRY.path / "calibration.json", tmp_path)
    other = replace(ENTRY, path=tmp_path, sha256="0" * 64)
    _, feature = get("/v1/features/bundled/golden-gate", app(other, labelled=False))
    assert feature["curve"] is None
    assert "its calibration curves are left out" in said[0]
