"""Tools that know nothing of steering steer by a model's name alone; each in an environment of its own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from tests.e2e.serving import Server

SCRIPTS = Path(__file__).parent.parent / "ecosystem"
ENVIRONMENTS = Path(__file__).parent.parent.parent / ".venv" / "ecosystem"
PRESET, WORD = "golden-gate", "Golden Gate"
TOOLS = ("with_openai", "with_langchain", "with_litellm", "with_inspect", "with_lm_eval")


def python_with(tool: str) -> str:
    """The Python of an environment that has a tool, and all of ours as far as they do not clash; made once."""
    requirements, versions = SCRIPTS / f"{tool}.in", SCRIPTS / f"{tool}.txt"
    if not requirements.exists():
        return sys.executable
    said = (requirements.read_text(), versions.read_text(), sys.version, sys.prefix)
    folder = ENVIRONMENTS / f"{tool}-{hashlib.sha256(chr(10).join(said).encode()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, clear=True, with_pip=True)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "ours.pth").write_text(sysconfig.get_path("purelib"))
        command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-warn-conflicts"]
        subprocess.run([*command, "--requirement", requirements, "--constraint", versions], check=True)
        (folder / "ready").touch()
    return str(python)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_steers_by_a_models_name(server: Server, tool: str) -> None:
    variant = f"{server.model}:{PRESET}"
    done = subprocess.run(
        [python_with(tool), str(SCRIPTS / f"{tool}.py"), server.url, server.model, variant, WORD],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
