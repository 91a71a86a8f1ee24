"""Kill -9 of one process of a server while variants and vectors are written: what was acknowledged is there afterwards."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import torch
from benchmarks.robustness.server import WIDTH, tiny_server
from safetensors.torch import save
from tests.support.serving import Server

GONE_S = 15
"""Within which every process of a killed server must be gone."""
STREAM = {"model": "tiny", "prompt": "the river", "max_tokens": 500, "ignore_eos": True}


class Record:
    """What servers have acknowledged, and what was found wrong."""

    def __init__(self) -> None:
        self.variants: dict[str, str] = {}
        """Id of the version, by name."""
        self.vectors: dict[str, str] = {}
        """sha256, by name."""
        self.killed: Counter[str] = Counter()
        self.bad: list[str] = []

    def write(self, server: Server, number: int, stop: threading.Event) -> None:
        """Write one thing after the other until told to stop, or the server is gone."""
        count = 0
        with httpx.Client(base_url=server.url, timeout=20) as http:
            while not stop.is_set():
                name = f"k{number}-{count}"
                move = {"op": "add", "feature": f"sae0/{count % 64}", "value": count + 0.5, "unit": "act"}
                variant = {"name": name, "steering": {"interventions": [move]}}
                vector = save(
                    {"v": torch.randn(WIDTH)}, {"layer": "0", "site": "resid_post", "sign": "+1", "source": "kills"}
                )
                headers = {"content-type": "application/octet-stream"}
                try:
                    made = http.post("/v1/variants", json=variant)
                    if made.status_code == 201:
                        self.variants[name] = made.json()["version"]
                    if count == 0:  # a site has room for few
                        held = http.post("/v1/vectors", params={"name": name}, content=vector, headers=headers)
                        if held.status_code == 201:
                            self.vectors[name] = held.json()["sha256"]
                    if made.status_code >= 500:
                        self.bad.append(f"{name}: {made.status_code} {made.text[:300]}")
                except httpx.TransportError:
                    return
                count += 1

    def check(self, server: Server) -> None:
        """Look for everything that was acknowledged."""
        with httpx.Client(base_url=server.url, timeout=60) as http:
            variants = {one["name"]: one["version"] for one in http.get("/v1/variants").json()["data"]}
            vectors = {one["name"]: one["sha256"] for one in http.get("/v1/vectors").json()["data"]}
        for kept, found in ((self.variants, variants), (self.vectors, vectors)):
            lost = [name for name, what in kept.items() if found.get(name) != what]
            if lost:
                self.bad.append(f"lost: {lost[:5]}")


def kills(folder: Path, num: int, seed: int) -> Record:
    """Start a server `num` times; each time check, write, and kill."""
    record, chance = Record(), random.Random(seed)
    for number in range(num):
        with tiny_server(folder, "--max-vectors", "4096") as server:
            record.check(server)
            stop = threading.Event()
            threads = [
                threading.Thread(target=record.write, args=(server, number, stop)),
                threading.Thread(target=_stream, args=(server,)),
            ]
            for thread in threads:
                thread.start()
            time.sleep(chance.uniform(0.05, 1.0))
            _kill_one(server, chance, record)
            stop.set()
            for thread in threads:
                thread.join()
        print(f"{number + 1} kills, {len(record.variants)} variants, {len(record.bad)} findings", flush=True)
    with tiny_server(folder, "--max-vectors", "4096") as server:
        record.check(server)
    return record


def _stream(server: Server) -> None:
    try:
        httpx.post(f"{server.url}/v1/completions", json=STREAM, timeout=60)
    except httpx.TransportError:
        return


def _kill_one(server: Server, chance: random.Random, record: Record) -> None:
    api = psutil.Process(server.pid)
    tree = [api, *api.children(recursive=True)]
    # by whose child each is: processes that were forked bear their parent's name
    (engine,) = _without_trackers(api.children())
    (worker,) = _without_trackers(engine.children())
    kind, victim = chance.choice([("API server", api), ("EngineCore", engine), ("worker", worker)])
    record.killed[kind] += 1
    victim.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(tree, timeout=GONE_S)
    left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    if left:
        record.bad.append(f"{victim} was killed; left after {GONE_S} s: {left}")


def _without_trackers(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if "resource_tracker" not in " ".join(process.cmdline())]
