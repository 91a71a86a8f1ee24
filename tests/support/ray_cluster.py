"""A Ray cluster of this machine, with saeclamp on Ray Serve as deploy/ray has it."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from tests.support.serving import wait_until

CONFIG = Path(__file__).parents[2] / "deploy" / "ray" / "serve.yaml"
PROGRAMS = Path(sys.executable).parent
DRAIN_S = 25
"""Seconds that a node has for its end, which must be more than its replicas' `--drain`."""


class Cluster:
    """One node, and what is deployed on it."""

    def __init__(self, folder: Path, argv: Sequence[str], threads: str = "0") -> None:
        """
        Start a node; nothing runs on it yet.

        argv:    arguments of `saeclamp serve`
        threads: `VLLM_CPU_OMP_THREADS_BIND` of each replica
        """
        (port, dashboard, gcs, metrics), self._folder, self._argv = _free_ports(4), folder, argv
        self.url, self.metrics_port = f"http://127.0.0.1:{port}", metrics
        self._port, self._dashboard = port, f"http://127.0.0.1:{dashboard}"
        self._environment = {
            **os.environ,
            # else its processes give way to whatever else runs here
            "RAY_worker_niceness": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S),
            "VLLM_CPU_OMP_THREADS_BIND": threads,
        }
        flags = [f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=8", f"--object-store-memory={100 << 20}"]
        self._log = (folder / "ray.log").open("w")
        self._node = subprocess.Popen(
            [PROGRAMS / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", *flags],
            stdout=self._log,
            stderr=self._log,
            env=self._environment,
            start_new_session=True,
        )

    def deploy(self, *flags: str, **settings: Any) -> None:
        """Deploy two replicas, or what the settings say, with more flags, and wait until they run."""
        config = yaml.safe_load(CONFIG.read_text())
        config["http_options"] = {"host": "127.0.0.1", "port": self._port}
        (application,) = config["applications"]
        application["args"] |= {
            "argv": shlex.join([*self._argv, *flags]),
            "metrics_port": self.metrics_port,
            **settings,
        }
        path = self._folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        # what answers this is there a while after the node
        assert wait_until(lambda: self._applications() is not None, 120), (self._folder / "ray.log").read_text()
        command = [PROGRAMS / "serve", "deploy", path, "--address", self._dashboard]
        subprocess.run(command, env=self._environment, check=True)
        assert wait_until(self._is_running, 600), self._applications()

    def _applications(self) -> dict[str, Any] | None:
        """What Serve says of what runs; None where nobody answers yet."""
        time.sleep(0.5)
        try:
            answer = httpx.get(f"{self._dashboard}/api/serve/applications/", timeout=60)
        except httpx.TransportError:
            return None
        applications: dict[str, Any] | None = answer.json()["applications"] if answer.status_code == 200 else None
        return applications

    def _is_running(self) -> bool:
        application = (self._applications() or {}).get("saeclamp", {"status": "unknown"})
        assert application["status"] != "DEPLOY_FAILED", application
        if application["status"] != "RUNNING":
            return False
        (deployment,) = application["deployments"].values()
        return all(replica["state"] == "RUNNING" for replica in deployment["replicas"])

    def replicas(self) -> list[psutil.Process]:
        return [process for process in self._descendants() if process.name().startswith("ray::ServeRepl")]

    def engines(self) -> list[psutil.Process]:
        return [process for process in self._descendants() if process.name().startswith("VLLM::Engine")]

    def _descendants(self) -> list[psutil.Process]:
        return psutil.Process(self._node.pid).children(recursive=True)

    def terminate(self) -> None:
        """Begin the end of the node, as Kubernetes does."""
        self._node.send_signal(signal.SIGTERM)

    def end(self) -> list[psutil.Process]:
        """End it if need be; returns what is left of it."""
        started = self._descendants() if self._node.poll() is None else []
        try:
            self.terminate()
            self._node.wait(DRAIN_S + 30)
        finally:
            _, left = psutil.wait_procs(started, 20)
            for process in left:
                process.kill()
            self._log.close()
        return left


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
