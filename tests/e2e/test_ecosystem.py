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
TOOLS = {
    "with_openai": (),
    "with_langchain": ("langchain-openai==1.7.4",),
    "with_litellm": ("litellm==1.110.2",),
    "with_inspect": ("inspect-ai==0.3.285",),
    "with_lm_eval": ("lm-eval[api]==0.4.13",),
}


def python_with(requirements: tuple[str, ...]) -> str:
    """The Python of an environment that has these packages, and all of ours as far as they do not clash; made once."""
    if not requirements:
        return sys.executable
    key = hashlib.sha256("\n".join((*requirements, sys.version, sys.prefix)).encode()).hexdigest()[:12]
    folder = ENVIRONMENTS / f"{requirements[0].partition('=')[0].partition('[')[0]}-{key}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, clear=True, with_pip=True)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "ours.pth").write_text(sysconfig.get_path("purelib"))
        command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-warn-conflicts"]
        subprocess.run([*command, *requirements], check=True)
        (folder / "ready").touch()
    return str(python)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_steers_by_a_models_name(server: Server, tool: str) -> None:
    variant = f"{server.model}:{PRESET}"
    done = subprocess.run(
        [python_with(TOOLS[tool]), str(SCRIPTS / f"{tool}.py"), server.url, server.model, variant, WORD],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
