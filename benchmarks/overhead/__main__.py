"""
What steering costs: tokens/s and time per token against vanilla vLLM and against hooks, side by side in one run.

    python -m benchmarks.overhead [--eager] [--starts 2] [--rounds 3] [--without PEER] [--only SETTING] [--batch N] [--write]

Beside vLLM's own server on the packaged model there runs one other at a time, with the same flags and environment: one of
saeclamp's, or a library that hooks a model in its own process. Each round visits what that one is measured in, settings and
sizes of batch, in a fresh random order, and right before or after each the vanilla server in the same size: a ratio is that
of two runs that follow each other, so that a slow minute of the machine hits both. Two processes of the very same server
differ by up to a tenth for as long as they live (where their memory happens to lie), so all can be started anew several
times, in a random order. Answers are streamed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from benchmarks.machine import RESULTS
from benchmarks.overhead import peers, servers
from benchmarks.overhead.load import Run, Steering, run
from benchmarks.overhead.report import HOOKS, Figures, admission, report
from benchmarks.overhead.settings import BATCH, PLAIN, SETTINGS, WIDE, Setting

from saeclamp_saes.cli.log_handler import set_up_log

NUM_TOKENS = {1: 48, 8: 48, 32: 32, BATCH: 24, WIDE: 12}
"""Of an answer, by size of batch: a run takes about ten seconds on two cores."""
PEER_BATCHES = (1, 32)


Runner = Callable[[Steering, int], Run]
"""What runs a batch of so many requests."""


def one_round(visits: Sequence[tuple[Setting, int]], other: Runner, plain: Runner, figures: Figures) -> None:
    """Visit everything that one server or library is measured in once, and vanilla vLLM before or after each."""
    for setting, batch in random.sample(visits, len(visits)):
        pair = random.sample([(other, setting), (plain, PLAIN)], 2)
        taken = {of.name: runner(of.steering, batch) for runner, of in pair}
        figures.add(setting.server, setting.name, batch, taken[setting.name], taken[PLAIN.name])
        speeds = ", ".join(f"{name}: {run.speed:.1f}" for name, run in taken.items())
        _say(f"  {setting.server}, batch {batch}: {speeds} tokens/s")


@contextmanager
def runner_of(name: str, eager: bool, folder: Path, figures: Figures) -> Iterator[Runner]:
    """Start a server or library, and warm it up: what is done first takes longer."""
    if name in peers.PEERS:
        with peers.started(name) as peer:
            figures.first_ids[name] = peer.first_ids
            peer.run(PEER_BATCHES[-1], 4)
            yield lambda steering, batch: Run(batch * NUM_TOKENS[batch], peer.run(batch, NUM_TOKENS[batch]))
        return
    with servers.started(name, eager, folder) as server:

        def run_batch(steering: Steering, batch: int) -> Run:
            return asyncio.run(run(server, batch, NUM_TOKENS[batch], steering))

        run_batch(PLAIN.steering, BATCH)
        yield run_batch
        told = admission(server)
        figures.admissions += [told] if told else []


@contextmanager
def _empty_folder() -> Iterator[Path]:
    """Always the same one: vLLM compiles anew for other paths of SAEs."""
    folder = Path(tempfile.gettempdir()) / "saeclamp-overhead"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(prog="overhead", description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--starts", type=int, default=2, help="how often everything is started anew")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after each start")
    parser.add_argument("--without", action="append", default=[], choices=peers.PEERS, help="leave a library out")
    names = [*dict.fromkeys(setting.name for setting in SETTINGS)]
    parser.add_argument("--only", action="append", choices=names, metavar="SETTING", help=f"one of: {', '.join(names)}")
    parser.add_argument("--batch", action="append", type=int, metavar="N", help="only batches of this size")
    parser.add_argument("--write", action="store_true", help="also write the table under benchmarks/results")
    args = parser.parse_args()
    set_up_log()
    figures = Figures()
    hooks = [Setting(HOOKS, name, PLAIN.steering, PEER_BATCHES) for name in peers.PEERS if name not in args.without]
    chosen = [setting for setting in [*SETTINGS, *hooks] if args.only is None or setting.name in args.only]
    pairs = [(one, batch) for one in chosen for batch in one.batches if args.batch is None or batch in args.batch]
    others = sorted({setting.server for setting, _ in pairs})
    with _empty_folder() as folder:
        for start in range(1, args.starts + 1):
            with runner_of(PLAIN.server, args.eager, folder, figures) as plain:
                for name in random.sample(others, len(others)):
                    visits = [(one, batch) for one, batch in pairs if one.server == name]
                    with runner_of(name, args.eager, folder, figures) as other:
                        for number in range(1, args.rounds + 1):
                            _say(f"start {start} of {args.starts}, {name}, round {number} of {args.rounds}")
                            one_round(visits, other, plain, figures)
                    text = report(figures, " ".join(["python -m benchmarks.overhead", *sys.argv[1:]]), args.eager)
                    if args.write:  # what was measured is kept if the rest is broken off
                        kind = ("eager" if args.eager else "compiled") + ("-some" if args.only or args.batch else "")
                        (RESULTS / f"{date.today().isoformat()}-overhead-{kind}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
