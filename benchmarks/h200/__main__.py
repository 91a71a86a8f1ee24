"""
The engine's kernels on one card: are they right, what do they cost, does the host ever wait for them.

    python -m benchmarks.h200 [--only PART] [--out FOLDER] [--seconds 480] [--write]
    python -m benchmarks.h200 --dry          every part to its end on a CPU, in Triton's interpreter, at tiny sizes
    python -m benchmarks.h200 --read FILE [--write]        render an earlier run's h200.json

It needs a card, torch and Triton, and nothing else: of this repository the folder alone, of vLLM nothing. Each part runs in
a process of its own, so that one that fails, hangs or breaks the card's context does not take the next with it. In FOLDER,
by default $OUT, h200.json and h200.md have all parts that are through, running.json what the one that runs has found so
far, and h200.log what all have said.

There is nothing here of the engine before its programs were in tables: its host code does not run without vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.h200.parts import PARTS, run_part
from benchmarks.h200.record import write_json
from benchmarks.h200.report import render

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FOLDERS = ("client", "sae_models", "server", ".")
"""Folders that modules are imported from."""
GRACE = 20
"""Seconds for a part's start, and for what it is doing when its share is used up."""


def run_all(names: list[str], out: Path, is_dry: bool, seconds: float) -> dict[str, Any]:
    """Run parts one after the other; after each, all that is known is on disk."""
    end = time.monotonic() + seconds
    run: dict[str, Any] = {
        "date": date.today().isoformat(),
        "command": " ".join(["python -m benchmarks.h200", *sys.argv[1:]]),
        "is_dry": is_dry,
        "parts": {},
    }
    for name in names:
        left = end - time.monotonic()
        limit = left if is_dry else min(PARTS[name].seconds + GRACE, left)
        print(f"{name}, at most {limit:.0f} s", file=sys.stderr, flush=True)
        run["parts"][name] = _run_apart(name, out, is_dry, limit)
        print(f"{name}: {run['parts'][name]['status']}", file=sys.stderr, flush=True)
        write_json(out / "h200.json", run)
        (out / "h200.md").write_text(render(run))
    return run


def _run_apart(name: str, out: Path, is_dry: bool, seconds: float) -> dict[str, Any]:
    """Run a part in a process of its own, and return its status, time and results."""
    if seconds <= 0:
        return {"status": "Left out: no time was left.", "seconds": 0.0, "results": {}}
    file, started = out.absolute() / "running.json", time.monotonic()
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.h200", "--part", name, "--out", str(file)]
    status = _status([*command, *(["--dry"] if is_dry else [])], out / "h200.log", seconds)
    results = json.loads(file.read_text()) if file.exists() else {}
    file.unlink(missing_ok=True)
    return {"status": status, "seconds": round(time.monotonic() - started, 1), "results": results}


def _status(command: list[str], log: Path, seconds: float) -> str:
    """Run a part, show what it says, and say how it ended."""
    paths = [*(str(ROOT / folder) for folder in FOLDERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("a+") as said:
        begin = said.tell()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            # with all that it has started
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(begin)
        lines = said.read().splitlines()
    print("\n".join(lines), file=sys.stderr, flush=True)
    if process.returncode == 0:
        return "ok"
    if process.returncode == -signal.SIGKILL:
        return f"Cut off after {seconds:.0f} s."
    last = [line for line in lines if line and not line[0].isspace()][-1:]
    return f"Failed with status {process.returncode}: {' '.join(last)}"


def main() -> None:
    """Run the parts, or one of them, or render what an earlier run has left."""
    parser = argparse.ArgumentParser(prog="h200", description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="on a CPU, in Triton's interpreter")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=f"one of: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder of the results")
    parser.add_argument("--seconds", type=float, default=480, help="for all parts together")
    parser.add_argument("--read", type=Path, metavar="FILE", help="run nothing: render this one")
    parser.add_argument("--write", action="store_true", help="also write the tables under benchmarks/results")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        run_part(args.part, args.out, args.dry)
        return
    run = json.loads(args.read.read_text()) if args.read else None
    if run is None:
        args.out.mkdir(parents=True, exist_ok=True)
        run = run_all(args.only or [*PARTS], args.out, args.dry, args.seconds)
    text = render(run)
    print(text)
    if args.write:
        (RESULTS / f"{run['date']}-h200{'-dry' if run['is_dry'] else ''}.md").write_text(text)
    if any(part["status"] != "ok" for part in run["parts"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
