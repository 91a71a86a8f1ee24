"""
What steering costs: tokens/s and time per token against vanilla vLLM and against hooks, side by side in one run.

    python -m benchmarks.overhead [--eager] [--starts 2] [--rounds 3] [--without PEER] [--write]

Four servers run at once on the packaged model, vLLM's own and three of saeclamp's, with the same flags and environment, and
beside them libraries that hook a model in their own process. Each round visits every size of batch and every setting in a
fresh random order, so that a slow minute of the machine hits all alike; a ratio is taken within its round. Two processes
of the very same server differ by up to a tenth for as long as they live (where their memory happens to lie), so all are
started anew several times, in a random order. Answers are streamed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import date
from pathlib import Path

from benchmarks.overhead import peers, servers
from benchmarks.overhead.load import run
from benchmarks.overhead.report import Figures, admission, report
from benchmarks.overhead.settings import SETTINGS, WIDE, Setting

RESULTS = Path(__file__).parent.parent / "results"
NUM_TOKENS = 48
NUM_WIDE_TOKENS = 16
"""In the widest batch, which takes long."""
PEER_BATCHES = (1, 32)


def one_round(running: dict[str, servers.Server], others: dict[str, peers.Peer], figures: Figures, number: int) -> None:
    """Visit everything once; the first round warms up, and is not counted."""
    visits: list[tuple[Setting | str, int]] = [(setting, batch) for setting in SETTINGS for batch in setting.batches]
    visits += [(name, batch) for name in others for batch in PEER_BATCHES]
    figures.begin_round(is_counted=number > 0)
    for nth, (visited, batch) in enumerate(random.sample(visits, len(visits)), 1):
        started = time.monotonic()
        num_tokens = NUM_WIDE_TOKENS if batch == WIDE else NUM_TOKENS
        if isinstance(visited, str):
            figures.add_peer(visited, batch, num_tokens, others[visited].run(batch, num_tokens))
        else:
            taken = asyncio.run(run(running[visited.server], batch, num_tokens, visited.steering))
            figures.add(visited, batch, num_tokens, taken)
        what = visited if isinstance(visited, str) else f"{visited.server}, {visited.name}"
        _say(f"  {nth} of {len(visits)}: {what}, batch {batch}: {time.monotonic() - started:.1f} s")
    figures.end_round()


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
        order = random.sample(sorted({setting.server for setting in SETTINGS}), 4)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overhead-")))
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
