"""Two replicas on Ray Serve answer as one, and no steered answer is lost unsaid when one is killed or all are replaced."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import save
from tests.support.databases import postgresql
from tests.support.fleet_files import FleetFiles
from tests.support.random_calls import Asker, check_that_they_agree
from tests.support.ray_cluster import Cluster
from tests.support.serving import serve, wait_until

from saeclamp import Add, Client, SaeclampError

pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.ray

KEY = "k"
START_S = 600
STEERING = Add(feature="low/3", value=1.5, unit="act")
NUM_FEATURES = 8
BUSY = ("--max-features", str(NUM_FEATURES), "--max-waiting", "1")
"""Flags of a server that one request can fill."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ray")
    with postgresql(tmp_path_factory.mktemp("postgres")) as url:
        shared = ("--fleet", "ray", "--variants", url, "--api-key", KEY, "--drain", "10")
        flags = [*FleetFiles.made(folder, model_folder).argv(), *shared, *BUSY]
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
    client.vectors.delete("calm")
    client.variants.delete("seaman")


def test_both_answer_as_one_server_does_that_nobody_stands_before(
    cluster: Cluster, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as many threads as a replica has, because sums depend on it
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0")
    argv = FleetFiles.made(tmp_path, model_folder).argv()
    with serve(tmp_path / "log", *argv, *BUSY, "--replica", "alone", name="tiny") as single:
        many = Asker(cluster.url, {"authorization": f"Bearer {KEY}"})
        for asker in (alone := Asker(single.url), many):
            asker.wait_for_meaning()
        check_that_they_agree(alone, many)
    assert len({*many.replicas}) == 2
    assert {*alone.replicas} == {"alone"}


def test_where_a_replica_is_full_the_proxy_passes_on_when_to_come_again(client: Client, cluster: Cluster) -> None:
    headers = {"x-session-id": "full", "authorization": f"Bearer {KEY}"}

    def completion(*features: int, max_tokens: int) -> dict[str, Any]:
        moves = [{"op": "add", "feature": f"low/{one}", "value": 1, "unit": "act"} for one in features]
        body = {"model": "tiny", "prompt": "x", "max_tokens": max_tokens, "ignore_eos": True}
        return {**body, "stream": max_tokens > 1, "steering": {"interventions": moves}}

    with httpx.Client(base_url=cluster.url, timeout=300, headers=headers) as http, ThreadPoolExecutor(3) as pool:
        everything = completion(*range(NUM_FEATURES), max_tokens=500)
        with http.stream("POST", "/v1/completions", json=everything) as long:
            lines = long.iter_lines()
            next(lines)  # it has begun, and goes on while there is someone to read it
            others = [
                pool.submit(http.post, "/v1/completions", json=completion(20 + n, max_tokens=1)) for n in range(3)
            ]
            answers = sorted((other.result() for other in others), key=lambda answer: answer.status_code)
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert answers[0].json()["steering"]["applied"]
    for refused in answers[1:]:
        assert (refused.headers["retry-after"], refused.json()["error"]["code"]) == ("1", "steering_busy")


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


def streamed(client: Client, number: int, max_tokens: int = 300, begun: threading.Semaphore | None = None) -> str:
    """What became of a steered stream: 'whole', or the error's class."""
    try:
        stream = client.completions.create(
            prompt=f"{number} bridges",
            steering=STEERING,
            max_tokens=max_tokens,
            stream=True,
            extra_body={"ignore_eos": True},
            extra_headers={"x-session-id": f"stream-{number}"},
        )
        receipts = []
        for index, chunk in enumerate(stream):
            if index == 0 and begun is not None:
                begun.release()
            receipts += [chunk.steering] if chunk.steering is not None else []
    except SaeclampError as exc:
        return type(exc).__name__
    return "whole" if receipts and receipts[-1].applied else "without a receipt"


def begin_16(client: Client, pool: ThreadPoolExecutor) -> list[Future[str]]:
    """Long streams, half of which have begun to come in."""
    begun = threading.Semaphore(0)
    running = [pool.submit(streamed, client, number, begun=begun) for number in range(16)]
    assert all(begun.acquire(timeout=60) for _ in range(8))
    return running


def test_streams_of_a_replica_that_is_killed_are_errors_and_it_comes_back(client: Client, cluster: Cluster) -> None:
    with ThreadPoolExecutor(16) as pool:
        running = begin_16(client, pool)
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


def test_a_replica_whose_engine_dies_ends_and_another_one_takes_its_place(client: Client, cluster: Cluster) -> None:
    before = cluster.replicas()
    cluster.engines()[0].kill()
    assert wait_until(lambda: any(not replica.is_running() for replica in before), 5)
    # requests go to the one that is left, and none to an engine that is no more
    for number in range(8):
        replica_of(client, f"after-{number}")
    assert wait_until(lambda: len(cluster.replicas()) == len(cluster.engines()) == 2, START_S)
    assert wait_until(lambda: len(all_replicas(client)) == 2, START_S)


def test_a_rolling_redeployment_loses_no_steered_answer(client: Client, cluster: Cluster) -> None:
    before, ended = all_replicas(client), threading.Event()
    ends: Counter[str] = Counter()

    def ask(worker: int) -> None:
        number = 0
        while not ended.wait(0.2):  # the new replicas start on the same cores
            ends[streamed(client, 1000 * worker + number, max_tokens=100)] += 1
            number += 1

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, worker) for worker in range(2)]
        try:
            cluster.deploy("--max-waiting", "17")
        finally:
            ended.set()
        for one in asking:
            one.result()
    assert set(ends) == {"whole"}, ends
    assert ends["whole"] > 4
    assert not before & all_replicas(client)


def test_each_replica_has_metrics_of_its_own(client: Client, cluster: Cluster) -> None:
    replicas = all_replicas(client)
    # those before the redeployment may still hold the first ports
    ports = range(cluster.metrics_port, cluster.metrics_port + 8)
    found = {replica: text for port in ports for replica, text in metrics_at(port)}
    assert found.keys() >= replicas
    for replica in replicas:
        assert "vllm:num_requests_waiting" in found[replica]
        assert "saeclamp_requests_waiting" in found[replica]


def metrics_at(port: int) -> list[tuple[str, str]]:
    """The replica whose metrics are on a port, if there is one, and its metrics."""
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    except httpx.TransportError:
        return []
    return [(replica, text) for replica in re.findall(r'saeclamp_build_info\{.*replica="(\w+)"', text)]


def test_every_stream_is_whole_that_a_node_had_begun_when_it_was_told_to_end(client: Client, cluster: Cluster) -> None:
    with ThreadPoolExecutor(16) as pool:
        running = begin_16(client, pool)
        cluster.terminate()
        assert Counter(one.result() for one in running) == {"whole": 16}
