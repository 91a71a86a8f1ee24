"""The run on a card: it reaches its end where there is none, and needs nothing that such a machine lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from benchmarks.h200.__main__ import FOLDERS, run_all
from benchmarks.h200.parts import PARTS
from benchmarks.h200.report import render

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in FOLDERS)}

ONLY_WHAT_IS_THERE = """
import importlib, sys

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in LACKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

LACKED = {"vllm", "pydantic", "httpx", "platformdirs", "rich", "fastapi", "starlette", "sqlalchemy", "transformers"}
sys.meta_path.insert(0, Lacking())
from benchmarks.h200 import bare_imports
bare_imports.install()
for part in sys.argv[1:]:
    importlib.import_module(f"benchmarks.h200.{part}")
"""


def test_every_part_is_importable_without_vllm_and_what_only_the_server_and_its_client_need() -> None:
    command = [sys.executable, "-c", ONLY_WHAT_IS_THERE, *PARTS, "small_case"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_dry_each_part_runs_to_its_end_and_says_what_it_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.h200", "--dry", "--out", str(tmp_path), "--seconds", "800"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    run = json.loads((tmp_path / "h200.json").read_text())
    assert {name: part["status"] for name, part in run["parts"].items()} == dict.fromkeys(PARTS, "ok"), done.stderr
    assert done.returncode == 0
    results = {name: part["results"] for name, part in run["parts"].items()}
    assert sum(case["edits"] for case in results["parity"]["cases"]) > 20
    assert sum(case["rules_held"] for case in results["parity"]["cases"]) > 5
    assert sum(one["edited_vectors"] for one in results["capture"]["replayed"]) > 0
    assert {one["setting"] for one in results["decode"]["steps"]} > {
        "idle",
        "64 features each",
        "a vector at each site",
    }
    assert {"1 feature each", "a vector at each site"} < {one["setting"] for one in results["prefill"]["prompts"]}
    assert len(results["queue_loop"]["loops"]) == 7
    assert len(results["compiled"]["code"]["calls"]) == 1
    assert results["tools"]["memcheck"]["status"] == results["tools"]["ncu"]["status"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"h200.json", "h200.md", "h200.log"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the parts would run")
def test_a_part_that_fails_does_not_stop_the_next_and_the_tables_say_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.h200", "--only", "rates", "--only", "compiled", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1
    run = json.loads((tmp_path / "h200.json").read_text())
    assert [*run["parts"]] == ["rates", "compiled"]
    for part in run["parts"].values():
        assert part["status"].startswith("Failed with status 1: ")
    assert done.stdout.count("** What follows was there by then.") == 2


def test_a_part_that_is_cut_off_leaves_what_it_had(tmp_path: Path) -> None:
    """The stand-in's first cases take seconds; before that, a process only starts."""
    run = run_all(["parity"], tmp_path, is_dry=True, seconds=0.5)
    assert run["parts"]["parity"] == {"status": "Cut off after 0 s.", "seconds": ANY, "results": {}}
    cases = [{"width": 8, "dtype": "float32", "drafts": True, "tokens": 4, "edits": 2, "rules_held": 1, "lost": 0}]
    run["parts"]["parity"]["results"] = {"cases": [cases[0] | {"largest_error": 1e-7}]}
    text = render(run)
    assert "**Cut off after 0 s.** What follows was there by then." in text
    assert "| 8 | float32 | yes | 4 | 2 | 1 | 0 | 1e-07 |" in text
