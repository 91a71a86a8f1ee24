"""A fleet answers as one server does, whichever of its servers is asked; who would answer otherwise does not start."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.checkpoints import make_sae
from tests.support.databases import postgresql
from tests.support.fleet_files import BOOK, FleetFiles
from tests.support.random_calls import Asker, check_that_they_agree
from tests.support.round_robin import round_robin
from tests.support.serving import serve

CORES = sorted(map(str, os.sched_getaffinity(0)), key=int)


class Made:
    """Servers of one model and SAE."""

    def __init__(self, folder: Path, tokenizer: Path, database: str) -> None:
        self.folder, self.database = folder, database
        self.files = FleetFiles.made(folder, tokenizer)

    def serve(self, replica: str, *, fleet: bool = True, dtype: str = "float32", sae: Path | None = None) -> Any:
        """Serve a copy of the files, or another SAE, as another machine would."""
        files = self.files.copied(self.folder / replica)
        shared = ("--variants", self.database, "--fleet", "f") if fleet else ()
        argv = [*replace(files, sae=sae or files.sae).argv(dtype), "--replica", replica, *shared]
        return serve(self.folder / f"{replica}.log", *argv, name="tiny")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Made]:
    with postgresql(tmp_path_factory.mktemp("postgres")) as url, pytest.MonkeyPatch.context() as patched:
        # the same number of threads in each, because sums depend on it
        patched.setenv("VLLM_CPU_OMP_THREADS_BIND", CORES[0])
        yield Made(tmp_path_factory.mktemp("fleet"), model_folder, url)


@pytest.fixture(scope="module")
def fleet(made: Made) -> Iterator[list[str]]:
    """URLs of two servers that answer as one."""
    with ExitStack() as running, pytest.MonkeyPatch.context() as patched:
        urls = []
        for core, replica in ((CORES[0], "one"), (CORES[-1], "two")):
            patched.setenv("VLLM_CPU_OMP_THREADS_BIND", core)
            urls.append(running.enter_context(made.serve(replica)).url)
        yield urls


def test_a_fleet_answers_as_one_server_does(fleet: list[str], made: Made) -> None:
    with made.serve("alone", fleet=False) as single, round_robin(fleet) as balancer:
        asked = [Asker(single.url), Asker(balancer)]
        for one in (*map(Asker, fleet), asked[0]):
            one.wait_for_meaning()
        check_that_they_agree(*asked)
    assert {*asked[1].replicas} == {"one", "two"}
    assert {*asked[0].replicas} == {"alone"}
    # neither says where something is on its machine
    assert (len(asked[1].fingerprints), asked[1].roots) == (1, {"tiny"})


def another_sae(made: Made, folder: Path) -> dict[str, Any]:
    sae = make_sae(folder / "low", layer=1, d_in=64, seed=2, threshold=0.5)
    shutil.copy(made.files.sae / "features.yaml", sae)
    return {"sae": sae}


def another_book(made: Made, folder: Path) -> dict[str, Any]:
    shutil.copytree(made.files.sae, folder / "low")
    (folder / "low" / "features.yaml").write_text(BOOK.replace("best: 1.0", "best: 1.5"))
    return {"sae": folder / "low"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (another_sae, "SAE low"),
        (another_book, "the feature book of low"),
        (lambda *_: {"dtype": "bfloat16"}, "--dtype"),
    ],
)
def test_a_server_that_would_answer_otherwise_does_not_start(
    fleet: list[str], made: Made, tmp_path: Path, change: Any, field: str
) -> None:
    with (
        pytest.raises(RuntimeError, match=f"not like those of the fleet 'f': {field} is ") as ended,
        made.serve("other", **change(made, tmp_path)),
    ):
        pass
    assert "Traceback" not in str(ended.value)
