"""
What steering costs: tokens/s and time per token against vanilla vLLM and against hooks, side by side in one run.

    python -m benchmarks.overhead [--eager] [--starts 2] [--rounds 3] [--without PEER] [--write]

Four servers run at once on the packaged model, vLLM's own and three of saeclamp's, with the same flags and environment, and
beside them libraries that hook a model in their own process. Each round visits every size of batch and every setting in a
fresh random order, and right before or after each the vanilla server in the same size: a ratio is that of two runs that
follow each other, so that a slow minute of the machine hits both. Two processes of the very same server differ by up to a
tenth for as long as they live (where their memory happens to lie), so all can be started anew several times, in a random
order. Answers are streamed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path

from benchmarks.overhead import peers, servers
from benchmarks.overhead.load import Run, run
from benchmarks.overhead.report import HOOKS, Figures, admission, report
from benchmarks.overhead.settings import BATCH, PLAIN, SETTINGS, WIDE, Setting

RESULTS = Path(__file__).parent.parent / "results"
NUM_TOKENS = {1: 48, 8: 48, 32: 32, BATCH: 24, WIDE: 12}
"""Of an answer, by size of batch: a run takes about ten seconds on two cores."""
PEER_BATCHES = (1, 32)


def one_round(running: dict[str, servers.Server], others: dict[str, peers.Peer], figures: Figures, number: int) -> None:
    """Visit everything once; the first round warms up, and is not counted."""
    visits: list[tuple[Setting | str, int]] = [(setting, batch) for setting in SETTINGS for batch in setting.batches]
    visits += [(name, batch) for name in others for batch in PEER_BATCHES]
    for nth, (visited, batch) in enumerate(random.sample(visits, len(visits)), 1):
        pair: list[Setting | str] = random.sample([visited, PLAIN], 2)
        taken = {_name(one): _run(one, batch, running, others) for one in pair}
        if number > 0:
            figures.add(*_name(visited), batch, taken[_name(visited)], taken[_name(PLAIN)])
        speeds = ", ".join(f"{name}, {of}: {run.speed:.1f}" for (of, name), run in taken.items())
        _say(f"  {nth} of {len(visits)}, batch {batch}: {speeds} tokens/s")


def _run(what: Setting | str, batch: int, running: dict[str, servers.Server], others: dict[str, peers.Peer]) -> Run:
    if isinstance(what, str):
        return Run(batch * NUM_TOKENS[batch], others[what].run(batch, NUM_TOKENS[batch]))
    return asyncio.run(run(running[what.server], batch, NUM_TOKENS[batch], what.steering))


def _name(what: Setting | str) -> tuple[str, str]:
    return (what, HOOKS) if isinstance(what, str) else (what.server, what.name)


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
    parser.add_argument("--write", action="store_true", help="also write the table under benchmarks/results")
    args = parser.parse_args()
    figures = Figures()
    names = [name for name in peers.PEERS if name not in args.without]
    for start in range(args.starts):
        names_of_servers = sorted({PLAIN.server, *(setting.server for setting in SETTINGS)})
        order = random.sample(names_of_servers, len(names_of_servers))
        with ExitStack() as stack:
            folder = stack.enter_context(_empty_folder())
            running = stack.enter_context(servers.started(args.eager, order, folder))
            others = {name: stack.enter_context(peers.started(name)) for name in names}
            figures.note_agreement({name: peer.first_ids for name, peer in others.items()})
            for number in range(args.rounds + 1):
                one_round(running, others, figures, number)
                _say(f"start {start + 1}, round {number} of {args.rounds}")
                figures.admissions[start] = admission(running["1 layer"])
                text = report(figures, " ".join(["python -m benchmarks.overhead", *sys.argv[1:]]), args.eager)
                if args.write and number > 0:  # what was measured is kept if the rest is broken off
                    name = f"{date.today().isoformat()}-overhead-{'eager' if args.eager else 'compiled'}.md"
                    (RESULTS / name).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
