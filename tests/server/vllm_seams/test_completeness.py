"""The list of seams is complete: what our own code imports, reads, calls and replaces of vLLM's is on it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from saeclamp_server.vllm_seams import SEAMS, vllm_folder
from saeclamp_server.vllm_seams.source import Package

SERVER = Path(__file__).parents[3] / "server" / "saeclamp_server"
LIST = [seam for seams in SEAMS.values() for seam in seams]

ASYNC_LLM = "vllm.v1.engine.async_llm.AsyncLLM"
OUTPUT = "vllm.v1.engine.EngineCoreOutput"
PARAMS = "vllm.sampling_params.SamplingParams"
REQUEST = "vllm.v1.request.Request"
SCHEDULER = "vllm.v1.core.sched.scheduler.Scheduler"
SCHEDULER_OUTPUT = "vllm.v1.core.sched.output.SchedulerOutput"
V1_RUNNER = "vllm.v1.worker.gpu_model_runner.GPUModelRunner"
V1_BATCH = "vllm.v1.worker.gpu_input_batch.InputBatch"
V2_RUNNER = "vllm.v1.worker.gpu.model_runner.GPUModelRunner"
V2_BATCH = "vllm.v1.worker.gpu.input_batch.InputBatch"
WORKER = "vllm.v1.worker.gpu_worker.Worker"
RESPONSES = "vllm.entrypoints.openai.responses.serving.OpenAIServingResponses"
MESSAGES = "vllm.entrypoints.anthropic.serving.AnthropicServingMessages"
PROCESSES = "vllm.v1.engine.utils.CoreEngineProcManager"

OF_VLLM: dict[str, dict[str, str]] = {
    "api/error_handlers.py": {"handler": MESSAGES},
    "api/openai/early_checks.py": {
        "engine": ASYNC_LLM,
        "self._processor": "vllm.v1.engine.input_processor.InputProcessor",
    },
    "api/openai/incomplete_answers.py:_in_responses": {"handler": RESPONSES},
    "api/openai/incomplete_answers.py:_in_messages": {"handler": MESSAGES},
    "api/openai/responses_and_messages.py": {"engine": ASYNC_LLM},
    "api/openai/sequence_tracker.py": {
        "output_processor": "vllm.v1.engine.output_processor.OutputProcessor",
        "output": OUTPUT,
        "request": "vllm.v1.engine.EngineCoreRequest",
    },
    "api/openai/steered_call.py": {"params": PARAMS},
    "api/openai/vllm_model_client.py": {
        "self._engine": ASYNC_LLM,
        "self._renderer": "vllm.renderers.online_renderer.OnlineRenderer",
        "params": PARAMS,
    },
    "app.py": {"engine": ASYNC_LLM},
    "engine/client.py": {"engine": ASYNC_LLM, "self._engine": ASYNC_LLM},
    "engine/lifeline.py": {"engine": ASYNC_LLM, "manager": PROCESSES},
    "engine/scheduler/grammar_limits.py": {
        "manager": "vllm.v1.structured_output.StructuredOutputManager",
        "request": REQUEST,
        "grammar": "vllm.v1.structured_output.backend_types.StructuredOutputGrammar",
    },
    "engine/scheduler/prefix_cache.py:hash_blocks": {"request": REQUEST},
    "engine/scheduler/scheduler.py": {
        "self": SCHEDULER,
        "super()": SCHEDULER,
        "request": REQUEST,
        "params": PARAMS,
        "output": OUTPUT,
        "earlier": OUTPUT,
        "leaving": OUTPUT,
        "last": OUTPUT,
        "end": OUTPUT,
        "part": "vllm.v1.engine.EngineCoreOutputs",
        "scheduler_output": SCHEDULER_OUTPUT,
        "model_runner_output": "vllm.v1.outputs.ModelRunnerOutput",
    },
    "engine/scheduler/tainted_blocks.py": {"self._manager": "vllm.v1.core.kv_cache_manager.KVCacheManager"},
    "engine/worker/cpu_draft_fix.py": {},  # a function of a module, and no class
    "engine/worker/cpu_seed_fix.py": {"runner": V1_RUNNER, "batch": V1_BATCH},
    "engine/worker/cpu_worker.py": {"runner": V1_RUNNER, "self": WORKER, "super()": WORKER},
    "engine/worker/kv_wipe.py": {"runner": V2_RUNNER},
    "engine/worker/v1_model_runner.py": {
        "runner": V1_RUNNER,
        "self._runner": V1_RUNNER,
        "batch": V1_BATCH,
        "self._runner.input_batch": V1_BATCH,
        "params": PARAMS,
        "scheduler_output": SCHEDULER_OUTPUT,
        "output": "vllm.sequence.IntermediateTensors",
    },
    "engine/worker/v1_model_runner.py:_known": {"request": "vllm.v1.worker.gpu_input_batch.CachedRequestState"},
    "engine/worker/v1_model_runner.py:_sample_tokens": {"state": "vllm.v1.worker.gpu_model_runner.ExecuteModelState"},
    "engine/worker/v2_model_runner.py": {
        "runner": V2_RUNNER,
        "self._runner": V2_RUNNER,
        "runner.model_state": "vllm.v1.worker.gpu.model_states.interface.ModelState",
        "vllm_model_runner": "vllm.v1.worker.gpu.model_runner",
        "input_batch": V2_BATCH,
        "new": "vllm.v1.core.sched.output.NewRequestData",
        "params": PARAMS,
        "scheduler_output": SCHEDULER_OUTPUT,
    },
    "engine/worker/v2_model_runner.py:_sample_tokens": {"state": "vllm.v1.worker.gpu.model_runner.ExecuteModelState"},
    "engine/worker/worker.py": {
        "self": WORKER,
        "super()": WORKER,
        "group": "vllm.distributed.parallel_state.GroupCoordinator",
    },
    "http_server.py": {"engine": ASYNC_LLM},
    "launch.py": {"engine": ASYNC_LLM, "manager": PROCESSES},
    "ray.py": {"engine": ASYNC_LLM, "self._engine": ASYNC_LLM},
    "startup/kv_cache_size.py": {
        "model": "vllm.config.model.ModelConfig",
        "cache": "vllm.config.cache.CacheConfig",
        "config": "vllm.config.vllm.VllmConfig",
    },
    "startup/sae_quick_check.py": {"engine": ASYNC_LLM},
    "startup/self_test.py": {"engine": ASYNC_LLM},
}
"""Variables that hold vLLM's objects, by file, or by function of a file; what `self` has of our own is left out."""


def parsed(name: str) -> ast.AST:
    file, _, function = name.partition(":")
    tree = ast.parse((SERVER / file).read_text())
    if not function:
        return tree
    (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    return found


def listed() -> Iterator[tuple[str, str, bool]]:
    """Names on the list, with the module or class that has each, and whether ours take the place of it."""
    for seam in LIST:
        for module in (seam.module,) if isinstance(seam.module, str) else seam.module:
            yield from ((module, name, False) for name in seam.names.split())
            reads = [f"{owner}.{attribute}" for owner, text in seam.reads.items() for attribute in text.split()]
            called = [text.partition("(")[0] for text in (*seam.calls, *seam.types)]
            overridden = [text.partition("(")[0] for text in seam.overrides]
            for name in (*reads, *called, *overridden):
                owner, _, attribute = name.partition(".")
                yield (module, owner, name in overridden)
                if attribute:
                    yield (f"{module}.{owner}", attribute, name in overridden)


KNOWN, OVERRIDDEN = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
for whose, name, is_overridden in listed():
    KNOWN[whose].add(name)
    if is_overridden:
        OVERRIDDEN[whose].add(name)


def test_every_name_that_is_imported_from_vllm_is_on_the_list() -> None:
    missing = set()
    for path in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                names = [alias.name for alias in node.names if f"{node.module}.{alias.name}" not in KNOWN]
                missing |= {f"{node.module}.{name}" for name in names if name not in KNOWN[node.module or ""]}
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.split(".")[0] == "vllm"]
                missing |= {name for name in names if name not in KNOWN}
    assert missing == set()


def own_attributes(tree: ast.AST) -> set[str]:
    """Attributes that classes of a file define or set themselves."""
    methods = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    stored = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return methods | {node.attr for node in stored if ast.unparse(node.value) == "self"}


def used(name: str) -> Iterator[tuple[str, str, bool]]:
    """Attributes of vLLM's objects in a file, with the class of each, and whether ours takes its place."""
    tree = parsed(name)
    own = own_attributes(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            holder = ast.unparse(node.value)
            kind = OF_VLLM[name].get(holder)
            if kind is not None and not (holder == "self" and node.attr in own):
                yield kind, node.attr, isinstance(node.ctx, ast.Store) or holder == "super()"


@pytest.mark.parametrize("name", OF_VLLM)
def test_what_is_read_of_vllms_objects_is_on_the_list(name: str) -> None:
    assert {(kind, attribute) for kind, attribute, _ in used(name) if attribute not in KNOWN[kind]} == set()


@pytest.mark.parametrize("name", OF_VLLM)
def test_of_each_function_that_is_replaced_or_overridden_all_parameters_are_on_the_list(name: str) -> None:
    package = Package(vllm_folder())
    missing = set()
    for kind, attribute, is_replaced in used(name):
        module, _, owner = kind.rpartition(".")
        found = package.module(module)
        if is_replaced and found is not None and attribute not in OVERRIDDEN[kind]:
            definition = found.find(owner)
            assert definition is not None
            if isinstance(definition[1], ast.ClassDef):
                members = package.members(definition[0], definition[1])
                is_function = isinstance(members.get(attribute), ast.FunctionDef | ast.AsyncFunctionDef)
                missing |= {(kind, attribute)} if is_function else set()
    assert missing == set()


def test_no_other_file_replaces_a_function_of_vllms() -> None:
    replaced = set().union(*OVERRIDDEN.values())
    files = {
        path.relative_to(SERVER).as_posix()
        for path in SERVER.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in replaced
    }
    assert files <= {name.partition(":")[0] for name in OF_VLLM}
