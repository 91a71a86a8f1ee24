"""Two pipeline stages in vLLM's V2 model runner: what is read and judged at one acts at the other, and is told once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.differential import FLAGS
from tests.support.tiny_engine import tiny_engine
from tests.support.whole_requests import Case, assert_aborted, assert_everything

NUM_NEW = 5


def test_answers_readings_and_aborts_are_those_of_one_stage(tmp_path: Path, model_folder: Path) -> None:
    flags = (*FLAGS, "--pipeline-parallel-size", "2")
    with tiny_engine(tmp_path, model_folder, "llama", *flags, runner="V2") as (server, oracle):
        cases = [Case.number(number) for number in (1, 2)]
        with ThreadPoolExecutor(2) as pool:
            answers = [*pool.map(lambda case: case.ask(server, NUM_NEW), cases)]
        for case, answer in zip(cases, answers, strict=True):
            assert_everything(case, answer, oracle)
        assert_aborted(server, oracle, cases[0].prompt, "low", NUM_NEW)
