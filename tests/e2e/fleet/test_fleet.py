"""A fleet answers as one server does, whichever of its servers is asked; who would answer otherwise does not start."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.checkpoints import make_model, make_sae
from tests.support.databases import postgresql
from tests.support.random_calls import Asker, Draw, is_same
from tests.support.round_robin import round_robin
from tests.support.serving import serve, wait_until

NUM_CALLS = 300
CORES = sorted(map(str, os.sched_getaffinity(0)), key=int)
FLAGS = (
    *("--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8", "--served-model-name", "tiny"),
    # what a server has cached depends on what it was asked before, and the fewer tokens a receipt has readings of
    *("--no-enable-prefix-caching", "--kv-cache-memory-bytes", str(64 << 20)),
    *("--vector-site", "resid_post.2", "--max-vectors", "3"),
)
BOOK = """\
features:
- {index: 3, name: bridge, description: Bridges., max_act: 4.0, clamp: [0.5, 2.0], best: 1.0}
- {index: 17, name: food, description: Food and drink., max_act: 3.0}
"""


class Made:
    """A model, an SAE with a book, and the flags that serve them."""

    def __init__(self, folder: Path, tokenizer: Path, database: str) -> None:
        self.folder, self.database = folder, database
        self.model = make_model(folder / "model", tokenizer)
        self.sae = make_sae(folder / "low", layer=1, d_in=64, seed=1, threshold=0.5)
        (self.sae / "features.yaml").write_text(BOOK)

    def serve(self, replica: str, *, sae: Path | None = None, dtype: str = "float32", fleet: bool = True) -> Any:
        own = ("--sae", f"low={sae or self.sae}", "--dtype", dtype, "--replica", replica)
        shared = ("--variants", self.database, "--fleet", "f") if fleet else ()
        return serve(self.folder / f"{replica}.log", str(self.model), *own, *shared, *FLAGS, name="tiny")


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


def finds_by_meaning(url: str) -> bool:
    """Tell whether a search is by meaning too, which begins a while after the start."""
    return "meaning" in httpx.get(f"{url}/v1/features", params={"query": "a bridge"}).json()["rankings"]


def test_a_fleet_answers_as_one_server_does(fleet: list[str], made: Made) -> None:
    with made.serve("alone", fleet=False) as single, round_robin(fleet) as balancer:
        asked = [Asker(single.url), Asker(balancer)]
        for url in (*fleet, single.url):
            assert wait_until(lambda url=url: finds_by_meaning(url), 120), url  # type: ignore[misc]
        drawn, statuses = Draw(0), Counter[tuple[str, int]]()
        for number in range(NUM_CALLS):
            call = drawn.call()
            expected, found = (one.ask(call) for one in asked)
            assert is_same(found, expected), (
                f"call {number}: {call.method} {call.path} {call.json}: {expected}, {found}"
            )
            statuses[call.path.split("/")[2], found[0]] += 1
    assert {*asked[1].replicas} == {"one", "two"}
    assert {*asked[0].replicas} == {"alone"}
    answered = {endpoint for endpoint, status in statuses if status in (200, 201)}
    assert answered >= {"chat", "completions", "responses", "messages", "variants", "vectors", "features", "steering"}
    assert sum(number for (_, status), number in statuses.items() if status < 300) > NUM_CALLS / 3, statuses
    assert all(status < 500 for _, status in statuses), statuses


def another_sae(made: Made, folder: Path) -> dict[str, Any]:
    sae = make_sae(folder / "low", layer=1, d_in=64, seed=2, threshold=0.5)
    shutil.copy(made.sae / "features.yaml", sae)
    return {"sae": sae}


def another_book(made: Made, folder: Path) -> dict[str, Any]:
    shutil.copytree(made.sae, folder / "low")
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
