"""Files of the playground: what is sent, under which rules, and that nothing of another origin is in them."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from saeclamp._notebook import HUE
from saeclamp_server import playground
from saeclamp_server.playground.pages import FOLDER, ROOT, SECURITY, TYPES

FIRST_LOAD_KB = 150
FILES = sorted(path for path in FOLDER.rglob("*") if path.suffix in TYPES)
OURS = [path for path in FILES if "vendor" not in path.parts]
VENDOR = FOLDER / "vendor"


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.include_router(playground.router)
    return TestClient(app, follow_redirects=False)


def test_the_root_leads_to_the_page_also_behind_a_proxy_with_a_prefix(client: TestClient) -> None:
    assert client.get("/").headers["location"] == "playground/"
    assert client.get("/playground").headers["location"] == "playground/"
    assert "saeclamp playground" in client.get(ROOT).text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_each_file_is_sent_as_it_is_with_its_type_and_a_strict_policy(client: TestClient, path: Path) -> None:
    name = "" if path.name == "index.html" else path.relative_to(FOLDER).as_posix()
    answer = client.get(f"{ROOT}{name}")
    assert (answer.status_code, answer.content) == (200, path.read_bytes())
    assert answer.headers["content-type"] == f"{TYPES[path.suffix]}; charset=utf-8"
    assert {key: answer.headers[key] for key in SECURITY} == SECURITY
    assert client.get(f"{ROOT}{name}", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_the_policy_lets_nothing_be_loaded_from_elsewhere_and_no_script_stand_in_the_page() -> None:
    policy = dict(part.strip().split(" ", 1) for part in SECURITY["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", page)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_no_file_of_ours_names_another_origin_or_writes_markup(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)[a-z]", text)
    # labels and model text are untrusted: they go into text nodes alone
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerouslySetInnerHTML|\beval\(", text
    )


@pytest.mark.parametrize(
    "path", ["app/../../pages.py", "%2e%2e/pages.py", "..%2fpages.py", "app", "app/", "none.js", "vendor/LICENSES.txt"]
)
def test_nothing_else_of_the_disk_can_be_asked_for(client: TestClient, path: str) -> None:
    assert client.get(f"{ROOT}{path}").status_code in (404, 405)


def test_files_are_compressed_for_those_who_take_it(client: TestClient) -> None:
    plain = client.get(f"{ROOT}style/parts.css", headers={"Accept-Encoding": "identity"})
    small = client.get(f"{ROOT}style/parts.css", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert small.headers["content-encoding"] == "gzip"
    assert small.content == plain.content


def test_the_first_load_is_small() -> None:
    size = sum(len(gzip.compress(path.read_bytes())) for path in FILES)
    assert size <= FIRST_LOAD_KB * 1000


def test_libraries_are_those_of_the_list_with_version_licence_and_hash() -> None:
    versions = json.loads((VENDOR / "versions.json").read_text())
    assert {path.name for path in VENDOR.glob("*.js")} == set(versions)
    for name, about in versions.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == about["sha256"], name
        assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
        assert f"{about['package']} {about['version']}" in (VENDOR / "LICENSES.txt").read_text()


def test_modules_import_files_that_are_there() -> None:
    for path in (one for one in FILES if one.suffix == ".js"):
        for name in re.findall(r"""(?m)^(?:import|export)\b[^;]*?\bfrom ?["']([^"']+)["']""", path.read_text()):
            assert name.startswith("."), f"{path.name} imports {name}"
            assert (path.parent / name).resolve() in FILES, f"{path.name} imports {name}"


def test_heat_has_the_colour_that_notebooks_draw_it_in() -> None:
    assert f"--heat: {HUE.replace(',', ' ')};" in (FOLDER / "style" / "base.css").read_text()
