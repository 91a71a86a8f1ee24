"""Long commands tell of every forward of the model and every step, from the first one on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.support import tiny_labels
from tests.support.tiny_models import make
from tests.support.tiny_training import corpus, reader, recipe, settings, wanted

from saeclamp_saes.labelling.run import run_labelling
from saeclamp_saes.lm.harvest import LOOKED_AT, MEDIAN_TOKENS, ActivationReader
from saeclamp_saes.training.activations_store import write_store
from saeclamp_saes.training.run import train

NUM_TEXTS = 60


class Told(NamedTuple):
    doing: str
    done: int
    total: int
    num_forwards: int
    """Of the model, until then"""


class Heard:
    """A report that keeps what it was told, and a model that counts its forwards."""

    def __init__(self) -> None:
        self.model = make("llama")
        self.model.register_forward_pre_hook(self._count)
        self.told: list[Told] = []
        self._num = 0

    def _count(self, *_: Any) -> None:
        self._num += 1

    def __call__(self, doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        self.told.append(Told(doing, done, total, self._num))

    def of(self, *doing: str) -> list[Told]:
        return [told for told in self.told if told.doing in doing]


Work = Callable[[Path, Path, ActivationReader, Heard], Any]
"""Of data, where to write, a reader and a report."""


def training(data: Path, out: Path, reading: ActivationReader, heard: Heard) -> None:
    train(settings(out, pool_tokens=32 * 1000), recipe(), wanted(data), reading, heard)


def harvesting(data: Path, out: Path, reading: ActivationReader, heard: Heard) -> None:
    write_store(out, wanted(data), reading, heard)


def labelling(data: Path, out: Path, reading: ActivationReader, heard: Heard) -> None:
    run_labelling(tiny_labels.settings(out / "labels.parquet", data), tiny_labels.sae(), reading, heard)


@pytest.mark.parametrize(
    ("work", "steps"),
    [
        (training, ["harvesting held-out documents", "harvesting"]),
        (harvesting, ["harvesting held-out documents", "harvesting"]),
        (labelling, ["reading documents"]),
    ],
)
def test_every_forward_is_told(tmp_path: Path, work: Work, steps: list[str]) -> None:
    """Groups of documents are far larger than this corpus, so that a step commits once, at its end."""
    heard = Heard()
    work(corpus(tmp_path / "data", NUM_TEXTS), tmp_path / "out", reader(heard.model), heard)
    of_steps = heard.of("measuring lengths", *steps)
    numbers = sorted({told.num_forwards for told in of_steps})
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert numbers[0] <= 3  # those before only find out how wide the model is
    for step in steps:
        told = heard.of(step)
        assert len({one.num_forwards for one in told}) >= 5
        assert 0 < told[0].done < told[-1].done <= told[-1].total
        assert [one.done for one in told[:-1]] == sorted(one.done for one in told[:-1])
        assert all(one.total == told[0].total for one in told)


def test_the_lengths_are_measured_on_so_many_tokens(tmp_path: Path) -> None:
    heard = Heard()
    reading = reader(heard.model, median_tokens=MEDIAN_TOKENS)
    harvesting(corpus(tmp_path / "data", NUM_TEXTS), tmp_path / "out", reading, heard)
    told = heard.of("measuring lengths")
    assert told[0].done < told[-1].done < told[-1].total == MEDIAN_TOKENS


def test_every_step_is_told_with_the_figures_of_the_last_line(tmp_path: Path) -> None:
    told: list[tuple[int, int, float | None]] = []

    def report(doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        if doing == "training":
            told.append((done, total, figures.get("loss")))

    train(settings(tmp_path / "run", log_every=40), recipe(), wanted(corpus(tmp_path / "data")), reader(), report)
    assert [(done, total) for done, total, _ in told] == [(step, 90) for step in range(1, 91)]
    losses = [loss for _, _, loss in told]
    assert losses[:39] == [None] * 39
    assert [len(set(part)) for part in (losses[39:79], losses[79:89], losses[89:])] == [1, 1, 1]
    assert len(set(losses)) == 4


def test_many_documents_are_told_while_they_are_looked_at(tmp_path: Path) -> None:
    heard = Heard()
    harvesting(corpus(tmp_path / "data", 3 * LOOKED_AT), tmp_path / "out", reader(heard.model), heard)
    told = [(LOOKED_AT * number, LOOKED_AT * number) for number in (1, 2, 3)]
    assert [(one.done, one.total) for one in heard.told[:3]] == told
    assert {told.doing for told in heard.told[:3]} == {"looking at the data"}
