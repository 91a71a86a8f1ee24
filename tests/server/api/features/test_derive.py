"""A vector out of two sets of texts, with evidence that is not of the texts it was made of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.support.vector_files import PLACES, WIDTH, held

from saeclamp import InvalidArgumentError
from saeclamp.types import Derive
from saeclamp_server.api.features.derive import derive, derived
from saeclamp_server.api.model_client import GenerateRequest, Prompt
from saeclamp_server.api.progress import ProgressCounter
from saeclamp_server.database import Database
from saeclamp_server.engine.worker.prompt_means import MAX_RECORDS, PromptMeanRecorder, chosen_positions
from saeclamp_server.errors import RequestError

AXIS = np.eye(WIDTH)[2]


def noise(num: int, seed: int, width: int = WIDTH) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((num, width))


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_what_differs_is_found_and_separates_texts_that_were_held_out(method: str) -> None:
    strength = np.linspace(4, 12, 40)[:, None]  # so that the differences vary along it, which is what PCA finds
    numbers, evidence = derived(noise(40, 1) + strength * AXIS, noise(40, 2), method)
    assert numbers @ AXIS == pytest.approx(8, abs=0.7)
    assert numbers @ AXIS / np.linalg.norm(numbers) > 0.95
    assert evidence.auc > 0.97
    assert evidence.cohens_d > 3
    assert evidence.halves_cosine > 0.8
    assert evidence.warnings == ()


def test_the_difference_of_the_means_is_exactly_that() -> None:
    positive, negative = noise(7, 1), noise(5, 2)
    numbers, _ = derived(positive, negative, "mean")
    assert numbers == pytest.approx(positive.mean(axis=0) - negative.mean(axis=0))


def test_sets_that_do_not_differ_look_like_chance_however_wide_the_stream_is() -> None:
    judged = [derived(noise(20, seed, 400), noise(20, seed + 100, 400), "mean")[1] for seed in range(20)]
    assert np.mean([one.auc for one in judged]) == pytest.approx(0.5, abs=0.08)
    assert abs(np.mean([one.cohens_d for one in judged])) < 0.3
    assert abs(np.mean([one.halves_cosine for one in judged])) < 0.05
    assert all("different vectors" in " ".join(one.warnings) for one in judged)


def test_a_component_that_has_nothing_of_what_the_sets_differ_in_is_refused() -> None:
    positive = np.array([[1.0, 3.0], [1.0, -3.0], [1.0, 3.0], [1.0, -3.0]])
    with pytest.raises(RequestError, match="use the method 'mean'") as refused:
        derived(positive, np.zeros((4, 2)), "pca")
    assert refused.value.param == "method"


def test_the_same_texts_twice_are_refused() -> None:
    with pytest.raises(RequestError, match="do not differ"):
        derived(noise(6, 1), noise(6, 1), "mean")


@pytest.mark.parametrize(
    ("tokens", "positions"),
    [("last", [5]), ("all", [1, 3, 5])],
)
def test_positions_are_the_last_or_all_that_are_ordinary(tokens: str, positions: list[int]) -> None:
    is_special = np.array([False, False, True])
    assert chosen_positions([0, 1, 2, 1, 2, 1], tokens, is_special).tolist() == positions
    assert chosen_positions([2, 2], tokens, is_special).tolist() == [1]


class Forward:
    """Records vectors as a worker does, each token's its own number."""

    def __init__(self, sinks_from: float = float("inf")) -> None:
        self.sinks_from = sinks_from
        self.recorder = PromptMeanRecorder(torch.tensor([False, True]), torch.device("cpu"))

    def run(self, *parts: tuple[str, Sequence[int], int, int]) -> None:
        """parts: of a batch: key, prompt, position of the first token, and how many there are"""
        self.recorder.begin_step()
        row, numbers = 0, []
        for key, ids, first, num in parts:
            asked = {"key": key, "site": "resid_post 1", "tokens": "all"}
            self.recorder.point(asked, ids, row, num, first)
            numbers += [1000.0 * len(ids) + position for position in range(first, first + num)]
            row += num
        for take in self.recorder.takes.get("resid_post 1", ()):
            vectors = torch.tensor(numbers)[take.rows][:, None]
            self.recorder.record(take.key, vectors, is_sink=vectors[:, 0] >= self.sinks_from)

    def fetch(self, *keys: str) -> dict[str, float]:
        return {key: float(np.frombuffer(mean, np.float64)[0]) for key, mean in self.recorder.fetch(keys)}


def test_each_request_records_its_own_rows_over_chunks_and_after_a_preemption() -> None:
    forward = Forward()
    short, long = [0] * 4, [0, 0, 1, 0, 0, 0]
    forward.run(("a", short, 0, 4), ("b", long, 0, 3))
    forward.run(("b", long, 0, 2))  # it was preempted, and begins again
    forward.run(("b", long, 2, 4), ("c", short, 0, 2))
    forward.run(("b", long, 6, 1))  # what is generated
    assert forward.fetch("a", "b", "gone") == {"a": 4002.0, "b": 6000 + (1 + 3 + 4 + 5) / 4}
    assert forward.fetch("a") == {}


def test_sinks_count_only_where_there_is_nothing_else() -> None:
    forward = Forward(sinks_from=4003)
    forward.run(("a", [0] * 4, 0, 2), ("b", [0, 1, 1, 0], 0, 4))
    forward.run(("a", [0] * 4, 2, 2))
    assert forward.fetch("a", "b") == {"a": 4001.5, "b": 4003.0}


def test_records_that_nobody_fetches_make_room() -> None:
    forward = Forward()
    for number in range(MAX_RECORDS + 3):
        forward.run((f"{number}", [0, 0], 0, 2))
    assert forward.fetch("0", "2", "3", f"{MAX_RECORDS + 2}") == {"3": 2001.0, f"{MAX_RECORDS + 2}": 2001.0}


class Texts:
    """A model that reads a text as its length, and the engine's records of it."""

    name, num_tokens = "tiny", 100

    def __init__(self) -> None:
        self.runs: list[GenerateRequest] = []

    async def from_text(self, text: str, path: str) -> Prompt:
        return Prompt((1,) * len(text))

    async def run(self, run: GenerateRequest, path: str, heard: Any = None) -> None:
        self.runs.append(run)

    async def fetch(self, keys: Sequence[str]) -> dict[str, bytes]:
        lengths = {run.recording.key: len(run.ids) for run in self.runs if run.recording}
        return {key: (lengths[key] * AXIS).tobytes() for key in keys}


def ask(database: Database, **fields: Any) -> tuple[Any, Texts]:
    body = {"name": "long", "site": "resid_post.3", "positive": ["aaaa"] * 4, "negative": ["a"] * 4}
    texts = Texts()

    async def whole() -> Any:
        vectors = held(database)
        made = await derive(Derive(**body | fields), texts, vectors, texts, ProgressCounter())  # type: ignore[arg-type]
        return made, vectors[made.vector.name]

    return asyncio.run(whole()), texts


def test_the_vector_is_kept_as_an_uploaded_one_and_says_where_it_comes_from(database: Database) -> None:
    (made, vector), texts = ask(database)
    assert (made.vector.name, made.vector.site, made.vector.sign) == ("long", "resid_post 3", 1)
    assert vector.direction.numbers.tolist() == (3 * AXIS).tolist()
    assert made.vector.source.startswith("difference of means of 4 and 4 texts, last token; held out: AUC 1.000")
    assert {(run.recording.site, run.recording.tokens) for run in texts.runs if run.recording} == {
        ("resid_post 3", "last")
    }


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"site": "resid_post.9"}, "site", f"there is one at {PLACES[0].site}"),
        ({"site": "nowhere"}, "site", "nowhere"),
        ({"method": "pca", "negative": ["a"] * 5}, "negative", "of pairs"),
        ({"name": ".."}, "name", ""),
        ({"positive": ["a" * 70_000] * 4}, "positive[1]", "at most 131072"),
    ],
)
def test_what_cannot_be_derived_is_refused(database: Database, fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(RequestError) as refused:
        ask(database, **fields)
    assert refused.value.param == param
    assert says in refused.value.message


def test_a_few_texts_are_too_few() -> None:
    with pytest.raises(InvalidArgumentError, match="positive"):
        Derive(name="a", site="resid_post.3", positive=("a",), negative=("b",) * 4)
