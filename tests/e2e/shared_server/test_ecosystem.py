"""Tools that know nothing of steering steer by a model's name alone; each in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.environments import python_with
from tests.support.serving import Server

SCRIPTS = Path(__file__).parents[2] / "ecosystem"
PRESET, WORD = "golden-gate", "Golden Gate"
TOOLS = ("with_openai", "with_langchain", "with_litellm", "with_inspect", "with_lm_eval")


def python_of(tool: str) -> str:
    """The Python of an environment that has a tool in its locked versions."""
    requirements, versions = SCRIPTS / f"{tool}.in", SCRIPTS / f"{tool}.txt"
    if not requirements.exists():
        return sys.executable
    said = f"{requirements.read_text()}\n{versions.read_text()}"
    return python_with(tool, ["--requirement", requirements, "--constraint", versions], said)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_steers_by_a_models_name(server: Server, tool: str) -> None:
    variant = f"{server.model}:{PRESET}"
    done = subprocess.run(
        [python_of(tool), str(SCRIPTS / f"{tool}.py"), server.url, server.model, variant, WORD],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
