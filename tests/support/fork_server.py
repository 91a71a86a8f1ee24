"""
A process that has imported vLLM and forks servers.

A server is three processes, each of which imports vLLM for ten seconds and more; half of what the end-to-end tests take.
Forked, they begin where the imports end. The whole command, each process with its own imports, is what `test_start_up.py`
runs.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAVY = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.generate.api_router",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.models.llama",
    "saeclamp_server.app",
    "saeclamp_server.cli.args",
    "saeclamp_server.engine.scheduler.scheduler",
    "saeclamp_server.launch",
)

VOCABULARY = 49152
"""Of the packaged model, and of the tiny ones."""


class Forked:
    """A process that the nursery has forked; of `subprocess.Popen`, what tests need."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._nursery.ask(do="poll", pid=self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.1)
        return status

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class Nursery:
    """
    The process, seen from the tests.

    first: a module that it imports before all others
    """

    def __init__(self, *first: str) -> None:
        self._first = first
        self._process: subprocess.Popen[str] | None = None

    def fork(self, module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> Forked:
        """Run `python -m MODULE ARGUMENTS` in a session of its own."""
        command = {"module": module, "arguments": [*arguments], "log": str(log), "environment": dict(environment)}
        pid = self.ask(do="fork", **command)
        return Forked(self, pid)

    def ask(self, **question: Any) -> Any:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", *self._first],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # threads of OpenMP do not survive a fork, so none may be there before the last one
                env={**os.environ, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"},
            )
            atexit.register(self._process.kill)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


NURSERY = Nursery()
"""Of these tests; begun when it is first asked."""
V2_NURSERY = Nursery("tests.support.v2_server")
"""Of servers in vLLM's V2 model runner."""


def main() -> None:
    """Import what takes long, and fork for everyone who asks; in a fork, run what was asked for."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed while importing is no answer
    for name in sys.argv[1:]:
        importlib.import_module(name)
    from saeclamp_server.startup.preflight import check_vllm
    from saeclamp_server.startup.vllm_settings import prepare_environment

    check_vllm()
    prepare_environment()
    for name in HEAVY:
        importlib.import_module(name)
    from vllm.platforms import current_platform

    importlib.import_module(f"saeclamp_server.engine.worker.{'cpu' if current_platform.is_cpu() else 'gpu'}_worker")
    if os.environ.get("TRITON_INTERPRET") != "1":  # where nothing is compiled
        _prepare_compiler()
    gc.freeze()  # or each fork goes through all that was imported, and copies it
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "poll":
            pid, status = os.waitpid(question["pid"], os.WNOHANG)
            answer: int | None = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                answers.close()
                return _run(question)
        print(json.dumps(answer), file=answers, flush=True)


def _prepare_compiler() -> None:
    """
    Have torch's compiler find out what it keeps for the life of a process; every engine compiles a part of its sampler.

    It tries the processor's instructions in processes that import torch, and hashes its own and Triton's sources. Nothing
    here may touch a GPU, which a fork could not use after that.
    """
    from torch._inductor import codecache, cpu_vec_isa

    cpu_vec_isa.valid_vec_isa_list()
    codecache.torch_key()
    codecache.triton_key()
    _compile_ranks()


def _compile_ranks() -> None:
    """
    Have the sampler's only function that is always compiled be compiled, for tensors as an engine's first request has them.

    Forks inherit it with its guards: where the vocabulary or the number of threads is another, an engine compiles its own.
    """
    import torch
    from vllm.v1.sample.sampler import Sampler

    with torch.inference_mode():
        Sampler.gather_logprobs(torch.zeros(2, VOCABULARY), 0, torch.zeros(2, dtype=torch.int64))


def _run(command: Mapping[str, Any]) -> None:
    os.setsid()
    log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, log, log)):
        os.dup2(file, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(command["environment"])
    gc.unfreeze = lambda: None  # or vLLM's processes, as they end, go through all that was imported, and copy it
    in_this_way = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: in_this_way  # type: ignore[assignment]
    sys.argv = [command["module"], *command["arguments"]]
    runpy.run_module(command["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
