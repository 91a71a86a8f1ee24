"""The image's own steps, as far as they run without Docker."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from saeclamp_server.packaged_model import prepared_model

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def test_the_model_is_converted_by_code_that_runs() -> None:
    (code,) = re.findall(r'^RUN python -c "(.*prepared_model.*)"$', DOCKERFILE, re.MULTILINE)
    prepared_model()  # so that the code has it from the cache
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("extra", ["cpu", "server"])
def test_each_extra_has_its_versions_and_only_the_cpu_s_loses_packages(extra: str) -> None:
    (step,) = (line for line in DOCKERFILE.splitlines() if line.startswith("RUN pip install"))
    log = 'pip() { printf "pip %s\\n" "$*"; }; '
    ran = subprocess.run(
        ["sh", "-ec", f"{log}EXTRA={extra}; {step.removeprefix('RUN ')}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    files = {word for line in ran for word in shlex.split(line) if word.startswith("deploy/")}
    assert files == {f"deploy/constraints/{extra}.txt"}
    assert all((ROOT / file).is_file() for file in files)
    assert any(f".[{extra},demo,postgres]" in line for line in ran)
    assert any(line.startswith("pip uninstall") for line in ran) == (extra == "cpu")
