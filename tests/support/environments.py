"""Python environments of their own for packages that would clash with ours, made once and kept."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

ENVIRONMENTS = Path(__file__).parents[2] / ".venv" / "ecosystem"


def python_with(name: str, requirements: Sequence[str | Path], versions: str) -> str:
    """
    The Python of an environment that has these packages, and all of ours as far as they do not clash; made once.

    name:         of its folder
    requirements: for pip, options and all
    versions:     what they come down to; the environment is made anew when it changes
    """
    said = chr(10).join((versions, sys.version, sys.prefix))
    folder = ENVIRONMENTS / f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, clear=True, with_pip=True)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "ours.pth").write_text(sysconfig.get_path("purelib"))
        command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-warn-conflicts"]
        subprocess.run([*command, *requirements], check=True)
        (folder / "ready").touch()
    return str(python)
