"""Two replicas on Ray Serve answer as one, and no steered answer is lost unsaid when one is killed or all are replaced."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import save
from tests.support.checkpoints import make_model, make_sae
from tests.support.databases import postgresql
from tests.support.serving import wait_until

from saeclamp import Add, Client, SaeclampError

pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.ray

KEY = "k"
START_S = 600
REPLICA = "ray::ServeReplica:default:saeclamp"
STEERING = Add(feature="low/3", value=1.5, unit="act")


class Cluster:
    """Ray, and what runs on it."""

    def __init__(self, folder: Path, argv: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log, self._argv = f"http://127.0.0.1:{port}", folder / "ray.log", argv
        environment = {
            **os.environ,
            # else its processes give way to whatever else runs here
            "RAY_worker_niceness": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "0",
        }
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.ray_process", str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,
            )

    def deploy(self, *flags: str) -> None:
        """Deploy two replicas, and wait until they run."""
        settings = {"argv": " ".join([*self._argv, *flags]), "replicas": 2}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(settings), file=self._process.stdin, flush=True)
        # before it, Ray passes on what the replicas' processes print
        running = any(line == "running\n" for line in self._process.stdout)
        assert running, self.log.read_text()[-4000:]

    def replicas(self) -> list[psutil.Process]:
        return [process for process in self._descendants() if process.name().startswith("ray::ServeRepl")]

    def engines(self) -> list[psutil.Process]:
        return [process for process in self._descendants() if process.name().startswith("VLLM::Engine")]

    def _descendants(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children(recursive=True)

    def end(self) -> list[psutil.Process]:
        """End it; returns what is left of it."""
        started = self._descendants()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(120)
        finally:
            _, left = psutil.wait_procs(started, 20)
            for process in left:
                process.kill()
        return left


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ray")
    model = make_model(folder / "model", model_folder)
    sae = make_sae(folder / "low", layer=1, d_in=64, seed=1, threshold=0.5)
    with postgresql(tmp_path_factory.mktemp("postgres")) as url:
        flags = [
            *(
                str(model),
                "--sae",
                f"low={sae}",
                "--fleet",
                "ray",
                "--variants",
                url,
                "--api-key",
                KEY,
                "--drain",
                "30",
            ),
            *("--enforce-eager", "--max-model-len", "512", "--served-model-name", "tiny", "--dtype", "float32"),
            *("--kv-cache-memory-bytes", str(64 << 20), "--allow-unverified-sae"),
        ]
        running = Cluster(folder, flags)
        try:
            running.deploy()
            yield running
        finally:
            left = running.end()
    assert [process for process in left if "resource_tracker" not in " ".join(process.cmdline())] == []


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.url, api_key=KEY, timeout=300, max_retries=0) as one:
        yield one


def replica_of(client: Client, session: str, **params: Any) -> str:
    """Who answered a steered request."""
    answer = client.completions.create(
        prompt="The bridge", steering=STEERING, max_tokens=2, extra_headers={"x-session-id": session}, **params
    )
    assert answer.steering.applied
    assert answer.steering.server is not None
    assert answer.steering.server.fleet == "ray"
    return answer.steering.server.replica


def all_replicas(client: Client) -> set[str]:
    return {replica_of(client, f"session-{number}") for number in range(12)}


def test_both_replicas_answer_and_one_conversation_stays_with_one(client: Client) -> None:
    assert len(all_replicas(client)) == 2
    for session in ("a", "b", "c"):
        assert len({replica_of(client, session) for _ in range(6)}) == 1


def test_what_one_replica_was_given_the_other_has(client: Client) -> None:
    import torch

    said = {"layer": "1", "site": "resid_post", "sign": "+1", "source": "a test"}
    made = client.vectors.upload("calm", save({"v": torch.ones(64)}, metadata=said))
    moved: set[str] = set()
    for number in range(8):
        answer = client.completions.create(
            prompt="The bridge",
            steering=Add(vector="calm", value=2.0, unit="act"),
            max_tokens=2,
            extra_headers={"x-session-id": f"vector-{number}"},
        )
        assert answer.steering.server is not None
        assert answer.steering.sae == {"vector:calm": made.sha256}
        moved.add(answer.steering.server.replica)
    assert len(moved) == 2
    client.variants.create("seaman", steering=STEERING)
    specs = {
        client.completions.create(
            prompt="x", model="tiny:seaman", max_tokens=1, extra_headers={"x-session-id": f"v-{number}"}
        ).steering.spec  # type: ignore[union-attr]
        for number in range(8)
    }
    assert len(specs) == 1


def test_the_proxy_passes_queries_keys_and_refusals_on(client: Client, cluster: Cluster) -> None:
    assert len(client.features.search("", limit=3).data) == 3
    with Client(cluster.url, api_key="wrong", max_retries=0) as stranger, pytest.raises(SaeclampError) as refused:
        stranger.models.list()
    assert getattr(refused.value, "status_code", None) == 401
    with pytest.raises(SaeclampError) as unknown:
        client.completions.create(prompt="x", steering=Add(feature="low/9999", value=1, unit="act"), max_tokens=1)
    assert (getattr(unknown.value, "status_code", None), getattr(unknown.value, "param", None)) == (
        400,
        "steering.interventions[0].feature",
    )
    chunks = [*client.completions.create(prompt="One", steering=STEERING, max_tokens=5, stream=True)]
    assert chunks[-1].steering is not None


def streamed(client: Client, number: int) -> str:
    """What became of a long steered stream: 'whole', or the error's class."""
    try:
        stream = client.completions.create(
            prompt=f"{number} bridges",
            steering=STEERING,
            max_tokens=300,
            stream=True,
            extra_body={"ignore_eos": True},
            extra_headers={"x-session-id": f"stream-{number}"},
        )
        receipts = [chunk.steering for chunk in stream if chunk.steering is not None]
    except SaeclampError as exc:
        return type(exc).__name__
    return "whole" if receipts and receipts[-1].applied else "without a receipt"


def test_streams_of_a_replica_that_is_killed_are_errors_and_it_comes_back(client: Client, cluster: Cluster) -> None:
    with ThreadPoolExecutor(16) as pool:
        running = [pool.submit(streamed, client, number) for number in range(16)]
        time.sleep(3)
        cluster.replicas()[0].kill()
        ends = Counter(one.result() for one in running)
    assert ends["without a receipt"] == 0, ends
    assert ends["whole"] > 0, ends
    assert ends["whole"] < 16, ends

    def is_back() -> bool:
        try:
            return len(all_replicas(client)) == 2
        except SaeclampError:
            return False

    assert wait_until(is_back, START_S)
    assert wait_until(lambda: len(cluster.engines()) == 2, 60)  # that of the killed one is gone too


def test_a_rolling_redeployment_loses_no_steered_answer(client: Client, cluster: Cluster) -> None:
    before, ended = all_replicas(client), threading.Event()
    ends: Counter[str] = Counter()

    def ask(worker: int) -> None:
        number = 0
        while not ended.is_set():
            ends[streamed(client, 1000 * worker + number)] += 1
            number += 1

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, worker) for worker in range(4)]
        try:
            cluster.deploy("--max-waiting", "17")
        finally:
            ended.set()
        for one in asking:
            one.result()
    assert set(ends) == {"whole"}, ends
    assert ends["whole"] > 4
    assert not before & all_replicas(client)
