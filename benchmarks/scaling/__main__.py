"""
Measure what several servers cost.

    python -m benchmarks.scaling throughput [--rounds 3] [--write]
    python -m benchmarks.scaling database [--write]
"""

from __future__ import annotations

import argparse
from datetime import date

from benchmarks.machine import RESULTS, machine
from benchmarks.scaling import database, throughput


def main() -> None:
    """Measure, and print Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("what", choices=["throughput", "database"])
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs of each kind")
    parser.add_argument("--write", action="store_true", help="also write the tables under benchmarks/results")
    args = parser.parse_args()
    lines = throughput.measure(args.rounds) if args.what == "throughput" else database.measure()
    head = [f"# Several servers: {args.what}, {date.today().isoformat()}", ""]
    text = "\n".join([*head, f"`python -m benchmarks.scaling {args.what} --write`", machine(), "", *lines]) + "\n"
    print(text)
    if args.write:
        (RESULTS / f"{date.today().isoformat()}-scaling-{args.what}.md").write_text(text)


if __name__ == "__main__":
    main()
