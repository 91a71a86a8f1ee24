"""Variants that leave one server for another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.support.variants import BRIDGE, FOOD, create, run, served

from saeclamp.types import VariantExport
from saeclamp_server.database import Database
from saeclamp_server.errors import RequestError
from saeclamp_server.variants import VariantRegistry, VariantStore


def test_an_export_is_taken_in_elsewhere(variants: VariantRegistry, tmp_path: Path) -> None:
    create(variants, "chef", BRIDGE)
    create(variants, "chef", FOOD)
    create(variants, "chef", BRIDGE)  # what the name means is not the newest version
    create(variants, "other", FOOD, description="Äpfel")
    exported = VariantExport.model_validate_json(json.dumps(run(variants.exported())))
    elsewhere = VariantRegistry(VariantStore(Database(f"sqlite:///{tmp_path}/other.sqlite3")), served(), ["tiny"])
    assert run(elsewhere.import_(exported)) == (3, 0)
    assert run(elsewhere.import_(exported)) == (0, 3)
    for name in ("chef", "other"):
        assert run(elsewhere.get(name)) == run(variants.get(name))
    assert run(elsewhere.exported()) == run(variants.exported())


def test_a_changed_export_is_refused_as_a_whole(variants: VariantRegistry, tmp_path: Path) -> None:
    create(variants, "chef", FOOD)
    create(variants, "other", FOOD)
    exported = json.loads(json.dumps(run(variants.exported())))
    exported["data"][1]["steering"]["interventions"][0]["value"] = 9
    elsewhere = VariantRegistry(VariantStore(Database(f"sqlite:///{tmp_path}/other.sqlite3")), served(), ["tiny"])
    with pytest.raises(RequestError) as refused:
        run(elsewhere.import_(VariantExport.model_validate(exported)))
    assert refused.value.param == "data[1].sha256"
    assert [one for one in run(elsewhere.listed()) if not one.read_only] == []


def test_an_export_that_no_database_could_keep_is_refused(variants: VariantRegistry) -> None:
    create(variants, "chef", FOOD)
    exported = run(variants.exported())
    exported["data"][0]["created"] = 2**63
    with pytest.raises(ValidationError, match=r"data\.0\.created\n.*less than or equal to 9223372036854775807"):
        VariantExport.model_validate(exported)
