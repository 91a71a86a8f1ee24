"""A control vector as repeng and llama.cpp write it becomes vectors, one a layer, and one variant that adds them all."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from tests.support.vector_files import WIDTH, Engine

from saeclamp import Add, Client, Steering
from saeclamp_saes import Site
from saeclamp_server.api import variants as variant_routes
from saeclamp_server.api import vectors as vector_routes
from saeclamp_server.api.error_handlers import refuse
from saeclamp_server.cli.control_vector import _import, read_control_vector
from saeclamp_server.cli.server_client import CommandError
from saeclamp_server.database import Database
from saeclamp_server.errors import InvalidVectorError, RequestError
from saeclamp_server.site_norms import SiteNorms
from saeclamp_server.steering import SteeringContext
from saeclamp_server.variants import VariantRegistry, VariantStore
from saeclamp_server.vectors import SteeringVector, VectorRegistry, VectorSite, VectorStore

LAYERS = (2, 3, 5)
DRAWN = np.random.default_rng(7).standard_normal((len(LAYERS), WIDTH)).astype(np.float32)


def directions() -> dict[str, Any]:
    return {f"direction.{layer}": row for layer, row in zip(LAYERS, DRAWN, strict=True)}


def write(path: Path, tensors: Mapping[str, Any], arch: str = "controlvector") -> Path:
    """As repeng's `export_gguf` does."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, numbers in tensors.items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class InProcess(httpx.BaseTransport):
    """An app, as a client without an event loop reaches it."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app)) as http:
                return await http.request(request.method, request.url, content=request.read(), headers=request.headers)

        answer = asyncio.run(ask())
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


class Running:
    """A server that has places behind some layers, and its client."""

    def __init__(self, folder: Path, layers: tuple[int, ...] = LAYERS) -> None:
        places = [VectorSite(Site("resid_post", layer), WIDTH, 2) for layer in layers]
        norms = {place.bank_name: SiteNorms(50.0, []) for place in places}
        self.engine = Engine()
        database = Database(f"sqlite:///{folder}/variants.sqlite3")
        vectors = VectorRegistry(places, norms, VectorStore(database, "tiny"), self.engine)
        served = SteeringContext({}, vectors=vectors)
        app = FastAPI()
        for routes in (vector_routes, variant_routes):
            app.include_router(routes.router)
        app.add_exception_handler(RequestError, refuse)
        variants = VariantRegistry(VariantStore(database), served, ["tiny"])
        app.state.saeclamp = SimpleNamespace(context=served, variants=variants, vectors=vectors)
        self.client = Client("http://test", http_client=httpx.Client(transport=InProcess(app)))

    def take_in(self, file: Path, **flags: Any) -> None:
        defaults = {"file": file, "model": "tiny", "name": None, "strength": 1.0, "layers": None}
        _import(argparse.Namespace(**defaults | flags), self.client)


@pytest.fixture
def running(tmp_path: Path) -> Running:
    return Running(tmp_path)


def test_each_layers_direction_is_a_vector_behind_that_layer(running: Running, tmp_path: Path) -> None:
    running.take_in(write(tmp_path / "happy mood.gguf", directions()))
    found = {one.name: one for one in running.client.vectors.list().data}
    assert {name: one.site for name, one in found.items()} == {
        "happy-mood-2": "resid_post 2",
        "happy-mood-3": "resid_post 3",
        "happy-mood-5": "resid_post 5",
    }
    assert found["happy-mood-3"].source.startswith("direction.3 of the control vector happy mood.gguf, made for llama")
    rows = {place: numbers for (place, _), (_, _, numbers) in running.engine.rows.items()}
    for layer, row in zip(LAYERS, DRAWN, strict=True):
        assert rows[f"vectors@resid_post {layer}"] == row.tolist()


def test_the_variant_adds_them_all_at_every_token_as_often_as_was_asked(running: Running, tmp_path: Path) -> None:
    running.take_in(write(tmp_path / "happy.gguf", directions()), strength=-1.5, name="sad")
    variant = running.client.variants.get("sad")
    assert variant.base == "tiny"
    shared = {"op": "add", "value": -1.5, "unit": "act", "tokens": "all", "special_tokens": True}
    steering = Steering.model_validate(variant.steering)
    assert [one.model_dump(exclude={"feature", "vector"}) for one in steering.interventions] == [shared] * 3
    assert [one.vector for one in steering.interventions] == ["sad-2", "sad-3", "sad-5"]


def test_layers_are_chosen_and_the_file_may_be_taken_in_again(
    running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "happy.gguf", directions())
    for is_again in (False, True):
        running.take_in(file, layers="3-9")
        assert ("exists already, unchanged; tiny:happy means it." in capsys.readouterr().err) == is_again
    assert running.client.vectors.list().names == ["happy-3", "happy-5"]
    with pytest.raises(CommandError, match="layers 2, 3, 5, none of them in 6-9"):
        running.take_in(file, layers="6-9")
    with pytest.raises(CommandError, match="FIRST-LAST"):
        running.take_in(file, layers="all")


def test_a_variant_says_whether_its_content_is_new_and_what_is_looked_up_does_not(
    running: Running, tmp_path: Path
) -> None:
    running.take_in(write(tmp_path / "v.gguf", directions()))
    variants, move = running.client.variants, Add(vector="v-3", value=1, unit="act")
    first, other = variants.create("sad", move), variants.create("sad", Add(vector="v-3", value=2, unit="act"))
    again = variants.create("sad", move)
    assert (first.is_new, other.is_new, again.is_new) == (True, True, False)
    assert again.version == first.version
    assert variants.get("sad").is_new is None


def test_a_layer_of_zeros_changes_nothing_and_is_left_out(running: Running, tmp_path: Path) -> None:
    nothing = np.zeros(WIDTH, np.float32)
    running.take_in(write(tmp_path / "happy.gguf", directions() | {"direction.2": nothing}))
    assert running.client.vectors.list().names == ["happy-3", "happy-5"]
    with pytest.raises(CommandError, match="zero"):
        running.take_in(write(tmp_path / "none.gguf", {"direction.2": nothing}))


def test_layers_without_a_place_are_named_with_the_flags_that_make_one(tmp_path: Path) -> None:
    running = Running(tmp_path, layers=(3,))
    with pytest.raises(CommandError, match=r"--vector-site resid_post\.2 --vector-site resid_post\.5"):
        running.take_in(write(tmp_path / "happy.gguf", directions()))
    assert running.client.vectors.list().names == []


def test_where_the_variant_is_refused_no_vector_stays(running: Running, tmp_path: Path) -> None:
    from saeclamp import BadRequestError

    file = write(tmp_path / "happy.gguf", directions())
    running.take_in(file, layers="3", name="kept")
    with pytest.raises(BadRequestError, match="base"):
        running.take_in(file, model="tinny")
    assert running.client.vectors.list().names == ["kept-3"]


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"direction.0": DRAWN[0]}, "layer 0"),
        ({"blk.0.attn_q.weight": DRAWN}, "is no control vector"),
        ({"direction.3": DRAWN}, "one row of F32"),
        ({"direction.3": DRAWN[0].astype(np.float64)}, "F32 or F16, not 1 of F64"),
        ({}, "holds no tensor"),
    ],
)
def test_what_is_no_control_vector_is_refused(tmp_path: Path, tensors: dict[str, Any], says: str) -> None:
    with pytest.raises(CommandError, match=says):
        read_control_vector(write(tmp_path / "file.gguf", tensors))


def test_a_file_cut_short_or_damaged_anywhere_is_a_sentence(tmp_path: Path) -> None:
    whole = write(tmp_path / "happy.gguf", directions()).read_bytes()
    generator = np.random.default_rng(1)
    path, refused = tmp_path / "damaged.gguf", []
    for _ in range(300):
        data = bytearray(whole[: generator.integers(len(whole))] if generator.random() < 0.5 else whole)
        for place in generator.integers(max(1, len(data) - 1), size=3):
            if data:
                data[place] = generator.integers(256)
        path.write_bytes(data)
        try:
            read_control_vector(path)
        except CommandError as refusal:
            refused.append(str(refusal))
    assert len(refused) > 150
    assert not any("\n" in sentence for sentence in refused)


def test_an_upload_of_one_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(InvalidVectorError, match="saeclamp vectors import FILE --model MODEL"):
        SteeringVector.parse(write(tmp_path / "happy.gguf", directions()).read_bytes())
