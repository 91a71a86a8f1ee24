"""
Programs beside CUDA, each where it is there: `compute-sanitizer` looks for bad addresses and races, `ncu` measures `edit`.

They run `small_case` in processes of their own, which only get what is left of this part's time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

from benchmarks.h200.device import Card
from benchmarks.h200.record import Record

METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes.sum",
    "launch__registers_per_thread",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
)
SANITIZE = ("compute-sanitizer", "--error-exitcode", "9", "--tool")
MEASURE = ("ncu", "--clock-control", "none", "--kernel-name", "edit", "--csv", "--metrics", ",".join(METRICS))
RUNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "memcheck": ((*SANITIZE, "memcheck"), ()),
    "racecheck": ((*SANITIZE, "racecheck"), ()),
    "ncu": (MEASURE, ("--launches",)),
}
"""What is put before the small case, and its arguments."""


def run(device: Card, record: Record) -> None:
    """Run what is there."""
    for name, (command, arguments) in RUNS.items():
        script = [sys.executable, "-m", "benchmarks.h200.small_case", *arguments]
        if device.is_dry:
            if name != "racecheck":  # the same as memcheck
                record.put(name, _said([*script, "--dry"], record.left))
        elif shutil.which(command[0]) is None:
            record.put(name, f"no {command[0]} here")
        elif record.left < 5:
            record.put(name, "no time was left")
        else:
            record.put(name, _said([*command, *script], record.left))


def _said(command: list[str], seconds: float) -> dict[str, object]:
    """Run a command, and keep its exit status and the last of what it said that matters."""
    # without torch's own pool, every tensor has bounds that memcheck knows
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        return {"status": "cut off"}
    lines = [line for line in (done.stdout + done.stderr).splitlines() if re.search(r"=====|edit|Error", line)]
    return {"status": done.returncode, "lines": lines[-12:]}
