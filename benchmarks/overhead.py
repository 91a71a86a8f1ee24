"""
What steering costs: tokens/s and time per token against vanilla vLLM, side by side in one run.

    python benchmarks/overhead.py [--eager] [--starts 4] [--rounds 3] [--write]

Two servers run at once on the packaged model, vLLM's own and `saeclamp serve`, with the same flags and the same
environment. Each round visits every batch size and every setting in a fresh random order, so that a slow minute of the
machine hits all alike; a ratio is taken within its round. Two processes of the very same server differ by up to a tenth
for as long as they live (where their memory happens to lie), so both are started anew several times, taking turns in being
the first. The table gives the median of all ratios and the range of the middle half.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx

from saeclamp_server.engine.settings import bind_threads, prepare_environment
from saeclamp_server.packaged_model import PACKAGED_MODEL, prepared_model

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.e2e.serving import Server, run_server

BATCHES = (1, 8, 32, 64)
NUM_TOKENS = 48
PROMPT = "Write a long story about a sailor who comes home after many years and finds that the harbour has changed."
RESULTS = Path(__file__).parent / "results"

Steering = Callable[[int], dict[str, Any] | None]


def clamp(value: float) -> dict[str, Any]:
    """Golden Gate at `value` x its maximum."""
    return {"interventions": [{"op": "clamp", "feature": "bundled/golden-gate", "value": value}]}


@dataclass(frozen=True)
class Setting:
    """One column of the comparison."""

    name: str
    vanilla: bool
    steering: Steering


SETTINGS = (
    Setting("vanilla", True, lambda number: None),
    Setting("idle", False, lambda number: None),
    Setting("all steered", False, lambda number: clamp(0.7)),
    Setting("all different", False, lambda number: clamp(0.5 + number / 256)),
)


async def measure(server: Server, batch: int, steering: Steering) -> float:
    """Seconds until `batch` simultaneous requests of NUM_TOKENS tokens each are answered."""
    async with httpx.AsyncClient(
        base_url=server.url, timeout=600, limits=httpx.Limits(max_connections=batch)
    ) as client:
        started = time.perf_counter()
        await asyncio.gather(*(_ask(client, server.model, steering(number)) for number in range(batch)))
        return time.perf_counter() - started


async def _ask(client: httpx.AsyncClient, model: str, steering: dict[str, Any] | None) -> None:
    body: dict[str, Any] = {
        "model": model,
        "prompt": PROMPT,
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    response = await client.post("/v1/completions", json=body if steering is None else body | {"steering": steering})
    answer = response.raise_for_status().json()
    if answer["usage"]["completion_tokens"] != NUM_TOKENS or ("steering" in answer) != (steering is not None):
        raise RuntimeError(f"not the answer that was asked for: {answer}")


@contextmanager
def servers(eager: bool, ours_first: bool, logs: Path) -> Iterator[tuple[Server, Server]]:
    """Vanilla vLLM and saeclamp, on the same model with the same settings."""
    prepare_environment()
    bind_threads(1)  # both processes inherit it
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB, of each
    flags = ["--dtype", "float32", "--max-model-len", "2048", "--served-model-name", PACKAGED_MODEL]
    flags += ["--enforce-eager"] if eager else []
    # `vllm serve` itself looks for a distribution named vllm, which the CPU build is not
    plain = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(prepared_model(print))]
    ours = [sys.executable, "-m", "saeclamp_server", "serve", PACKAGED_MODEL, "--sae", "bundled"]
    commands = [([*plain, "--host", "127.0.0.1", *flags], "vanilla"), ([*ours, *flags], "saeclamp")]
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(run_server(command, logs / f"{name}.log", PACKAGED_MODEL))
            for command, name in (reversed(commands) if ours_first else commands)
        }
        yield started["vanilla"], started["saeclamp"]


async def rounds(vanilla: Server, ours: Server, num_rounds: int, seconds: dict[tuple[int, str], list[float]]) -> None:
    """Add the seconds of each (batch, setting) of each round."""
    for number in range(-1, num_rounds):  # the first warms up and is not counted
        for batch in random.sample(BATCHES, len(BATCHES)):
            for setting in random.sample(SETTINGS, len(SETTINGS)):
                taken = await measure(vanilla if setting.vanilla else ours, batch, setting.steering)
                if number >= 0:
                    seconds.setdefault((batch, setting.name), []).append(taken)
        print(f"round {number + 1} of {num_rounds}", file=sys.stderr, flush=True)


def table(seconds: dict[tuple[int, str], list[float]]) -> str:
    """Markdown: tokens/s, ms per token, and the ratio of speeds to vanilla as median (middle half)."""
    lines = ["| batch | setting | tokens/s | ms per token of a request | speed / vanilla |", "|--:|---|--:|--:|---|"]
    for batch in BATCHES:
        base = seconds[batch, "vanilla"]
        for setting in SETTINGS:
            taken = seconds[batch, setting.name]
            middle = statistics.median(taken)
            ratios = [other / own for other, own in zip(base, taken, strict=True)]
            low, median, high = statistics.quantiles(ratios, n=4)
            spread = f"{median:.3f} ({low:.3f} - {high:.3f})"
            rate, each = batch * NUM_TOKENS / middle, middle / NUM_TOKENS * 1000
            lines.append(
                f"| {batch} | {setting.name} | {rate:.1f} | {each:.1f} | {'1' if setting.vanilla else spread} |"
            )
    return "\n".join(lines)


def heading(eager: bool, num_starts: int, num_rounds: int) -> str:
    """Say what was measured, on what, with which versions."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("saeclamp", "vllm-cpu", "torch"))
    return (
        f"# Overhead of steering, {date.today().isoformat()}\n\n"
        f"`python benchmarks/overhead.py{' --eager' if eager else ''} --starts {num_starts} --rounds {num_rounds}`: "
        f"{PACKAGED_MODEL} in "
        f"float32, {'eager' if eager else 'compiled'}, {len(PROMPT.split())}-word prompt, {NUM_TOKENS} new tokens.\n"
        f"{os.cpu_count()} cores ({platform.machine()}), {versions}, Python {platform.python_version()}.\n"
    )


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--starts", type=int, default=4, help="how often both servers are started anew")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after each start")
    parser.add_argument("--write", action="store_true", help="also write the table under benchmarks/results")
    args = parser.parse_args()
    seconds: dict[tuple[int, str], list[float]] = {}
    for start in range(args.starts):
        print(f"start {start + 1} of {args.starts}", file=sys.stderr, flush=True)
        with servers(args.eager, start % 2 == 1, Path(tempfile.gettempdir())) as (vanilla, ours):
            asyncio.run(rounds(vanilla, ours, args.rounds, seconds))
    report = f"{heading(args.eager, args.starts, args.rounds)}\n{table(seconds)}\n"
    print(report)
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        name = f"{date.today().isoformat()}-overhead-{'eager' if args.eager else 'compiled'}.md"
        (RESULTS / name).write_text(report)


if __name__ == "__main__":
    main()
