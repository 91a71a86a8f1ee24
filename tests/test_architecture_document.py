"""The documents name files and folders that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("client/", "sae_models/", "server/", "tests/", "benchmarks/", "deploy/", "docs/")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    named = re.findall(r"`([\w./-]+)`", document.read_text())
    missing = {name for name in named if name.startswith(PACKAGES) and not (ROOT / name).exists()}
    assert not missing


def test_every_folder_and_file_of_the_tree_is_there() -> None:
    tree = (ROOT / "docs/architecture.md").read_text().partition("## The folders")[2].split("```")[1]
    above: list[str] = []
    missing = set()
    for line in filter(None, tree.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        names = [part for part in re.split(r"\s{2,}", line.strip())[0].split() if part.endswith(("/", ".py"))]
        assert names, line
        above[depth:] = [names[0]]
        paths = {"".join([*above[:depth], name]) for name in names}
        missing |= {path for path in paths if not (ROOT / path).exists()}
    assert not missing


def test_the_tree_leaves_out_no_folder_of_the_packages() -> None:
    tree = (ROOT / "docs/architecture.md").read_text().partition("## The folders")[2].split("```")[1]
    packages = ("client/saeclamp", "sae_models/saeclamp_saes", "server/saeclamp_server")
    folders = {
        path.name for package in packages for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()
    }
    assert {name for name in folders if f" {name}/" not in tree} == set()
