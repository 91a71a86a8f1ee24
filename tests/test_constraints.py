"""The files that say which versions are installed: complete, made of pins alone, and part of what makes set-up run again."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "deploy" / "constraints"
ECOSYSTEM = ROOT / "tests" / "ecosystem"
FILES = [*sorted(CONSTRAINTS.glob("*.txt")), *sorted(ECOSYSTEM.glob("*.txt"))]


def pins(file: Path) -> dict[str, set[str]]:
    """Versions by name: a package may have several, for other Pythons or machines."""
    versions = defaultdict(set)
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            (specifier,) = pin.specifier
            assert (specifier.operator, pin.url) == ("==", None), line
            versions[canonicalize_name(pin.name)].add(specifier.version)
    return versions


def requirements(extra: str) -> Iterator[Requirement]:
    """What an extra of the project asks for, with what other extras it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in (*project["dependencies"], *project["optional-dependencies"][extra]):
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            for named in requirement.extras:
                yield from requirements(named)
        else:
            yield requirement


def test_there_is_a_file_for_each_kind_of_machine_and_each_tool() -> None:
    assert [file.stem for file in FILES] == [
        "cpu",
        "server",
        "with_inspect",
        "with_langchain",
        "with_litellm",
        "with_lm_eval",
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_holds_pins_and_names_no_index_and_no_place(file: Path) -> None:
    assert all(len(versions) >= 1 for versions in pins(file).values())
    assert len(pins(file)) > 20
    assert not any(word in file.read_text() for word in ("://", " @ ", "--", "file:"))


@pytest.mark.parametrize("kind", ["cpu", "server"])
@pytest.mark.parametrize("extra", ["kind", "demo", "postgres", "train", "ray", "dev"])
def test_all_that_the_project_asks_for_has_a_version_that_it_allows(kind: str, extra: str) -> None:
    versions = pins(CONSTRAINTS / f"{kind}.txt")
    for requirement in requirements(kind if extra == "kind" else extra):
        allowed = [requirement.specifier.contains(version) for version in versions[canonicalize_name(requirement.name)]]
        assert set(allowed) == {True}, f"{requirement}: run `make lock`"


@pytest.mark.parametrize("kind", ["cpu", "server"])
def test_what_builds_the_project_and_pip_itself_are_among_them(kind: str) -> None:
    assert {"pip", "hatchling", "editables"} <= pins(CONSTRAINTS / f"{kind}.txt").keys()


@pytest.mark.parametrize(("kind", "torch"), [("cpu", True), ("server", False)])
def test_each_kind_of_machine_has_its_own_torch(kind: str, torch: bool) -> None:
    assert any(version.endswith("+cpu") for version in pins(CONSTRAINTS / f"{kind}.txt")["torch"]) is torch


@pytest.mark.parametrize("tool", ["with_inspect", "with_langchain", "with_litellm", "with_lm_eval"])
def test_a_tool_has_the_version_that_was_asked_for(tool: str) -> None:
    asked = Requirement((ECOSYSTEM / f"{tool}.in").read_text().strip())
    (version,) = pins(ECOSYSTEM / f"{tool}.txt")[canonicalize_name(asked.name)]
    assert asked.specifier.contains(version)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("changed", ["pyproject.toml", "deploy/constraints/cpu.txt", "deploy/constraints/server.txt"])
def test_other_versions_make_set_up_run_again(tmp_path: Path, changed: str) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(CONSTRAINTS, tmp_path / "deploy" / "constraints")
    machine = "server" if "server" in changed else "cpu"

    def stamp() -> str:
        command = ["make", "-n", "serve", f"MACHINE={machine}"]
        printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        return next(line for line in printed.splitlines() if f"touch .venv/.installed-{machine}-" in line)

    before = stamp()
    assert stamp() == before
    (tmp_path / changed).write_text((tmp_path / changed).read_text() + "\n# another\n")
    assert stamp() != before
