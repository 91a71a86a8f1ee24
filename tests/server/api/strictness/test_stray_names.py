"""What is loaded is asked for in `steering` or as the model; its names elsewhere are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.variants import served

from saeclamp.types import NewVariant, Steering
from saeclamp_server.api.strictness.stray_names import refuse_loaded_names
from saeclamp_server.database import Database
from saeclamp_server.errors import RequestError
from saeclamp_server.variants import VariantRegistry, VariantStore

SERVED = served()
SAE = next(iter(SERVED.saes))
FEATURE = next(note.name for note in SERVED.saes[SAE].entry.features.values() if note.name is not None)
MESSAGE = {"role": "user", "content": "x"}


@pytest.fixture
def variants(tmp_path: Path) -> Iterator[VariantRegistry]:
    database = Database(f"sqlite:///{tmp_path}/variants.sqlite3")
    store = VariantStore(database)
    held = VariantRegistry(store, SERVED, ["tiny"])
    steering = Steering.model_validate({"interventions": [{"op": "ablate", "feature": f"{SAE}/1"}]})
    asyncio.run(held.create(NewVariant(name="calm-sea", steering=steering, alias="tide")))
    yield held
    database.close()


def check(variants: VariantRegistry | None, body: dict[str, Any], query: bytes = b"") -> None:
    app = SimpleNamespace(state=SimpleNamespace(saeclamp=SimpleNamespace(context=SERVED, variants=variants)))
    asyncio.run(refuse_loaded_names(body, {"query_string": query, "app": app}))


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({SAE: {"1": 2}}, SAE, "an SAE"),
        ({FEATURE: 0.75}, FEATURE, "a feature"),
        ({FEATURE.upper().replace("-", "_"): 1}, FEATURE.upper().replace("-", "_"), "a feature"),
        ({"extra_body": {FEATURE: 0.75}}, "extra_body", "a feature"),
        ({"messages": [MESSAGE, {**MESSAGE, FEATURE: 1}]}, "messages[1]", "a feature"),
        ({"calm-sea": True}, "calm-sea", "a variant"),
        ({"calm_sea": True}, "calm_sea", "a variant"),
        ({"tide": 1}, "tide", "a variant"),
        ({"tiny:calm-sea": 1}, "tiny:calm-sea", "a variant"),
        ({"concepts": {f"{SAE}/{FEATURE}": 0.75}}, "concepts", "is not read"),
        ({"preset": f"{SAE}/1"}, "preset", "is not read"),
        ({"preset": FEATURE}, "preset", "is not read"),
        ({"preset": {"name": FEATURE.upper()}}, "preset", "is not read"),
        ({"model": "tiny", "steeringPersona": ["calm-sea"]}, "steeringPersona", '"model": "tiny:calm-sea"'),
        ({"style": "tide"}, "style", "is not read"),
        ({"pin": [{"which": f"{SAE}/1", "by": 2}]}, "pin", "is not read"),
        ({"preset": "tiny:calm-sea"}, "preset", '"model": "tiny:calm-sea"'),
        ({"model": "tiny", "messages": [{**MESSAGE, "model": "tiny:calm-sea"}]}, "messages[0].model", "not read there"),
        ({"model": "tiny", "messages": [{**MESSAGE, "model": "tide"}]}, "messages[0].model", "not read there"),
        ({"model": "tiny", "extra_body": {"model": "tiny:calm-sea"}}, "extra_body.model", "not read there"),
        ({"model": "tiny", "extra_body": {"model": "tiny:gone"}}, "extra_body.model", "not read there"),
    ],
)
def test_a_name_of_what_is_loaded_is_no_field(
    variants: VariantRegistry, body: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(RequestError) as raised:
        check(variants, body)
    assert raised.value.param == param
    assert says in raised.value.message


def test_a_word_that_is_also_a_name_may_stand_where_nobody_chooses_by_it(variants: VariantRegistry) -> None:
    check(variants, {"topic": FEATURE, "style": "formal", "note": "tide"})


def test_nor_is_it_a_field_of_the_url(variants: VariantRegistry) -> None:
    with pytest.raises(RequestError, match="is the name of a feature"):
        check(variants, {}, f"{FEATURE}=0.75".encode())


@pytest.mark.parametrize(
    "body",
    [
        {"custom": {"a": "b/c", "d": ["e:f"]}, "style": "warm"},
        {"model": "tiny:calm-sea", "messages": [{**MESSAGE, "model": "tiny:calm-sea"}]},
        {"model": "tiny", "messages": [{**MESSAGE, "model": "gpt-4o", "weight": 1}]},
        {"model": "tiny", "messages": [{"role": "user", "content": {FEATURE: 1}}]},
        {"metadata": {FEATURE: 1}, "gone": None, FEATURE: None},
    ],
)
def test_other_names_pass(variants: VariantRegistry, body: dict[str, Any]) -> None:
    check(variants, body)


def test_a_request_of_known_fields_asks_no_database() -> None:
    check(None, {"model": "tiny", "messages": [MESSAGE], "temperature": 0, "metadata": {}})
