"""
Worker process: the adapter to vLLM's V2 model runner (`v1.worker.gpu.model_runner.GPUModelRunner`), which is for GPUs.

`finish_requests` says which requests have gone, preempted ones among them, and `add_requests` which have come. What follows
`prepare_inputs` and comes before the forward, captured or not, is `ModelState.preprocess_state`: there the batch is laid out
on the device. The step report leaves with what `sample_tokens` returns. In `postprocess_sampled` the device knows how many
drafts were accepted, and `execute_model` takes and gives what is sent between pipeline stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import vllm.v1.worker.gpu.model_runner as vllm_model_runner
from torch import Tensor
from vllm.sequence import IntermediateTensors

from saeclamp_server.engine.lifeline import begin_serving
from saeclamp_server.engine.step_report import WIPED
from saeclamp_server.engine.worker.kv_wipe import wipe_blocks
from saeclamp_server.engine.worker.ops import HookState
from saeclamp_server.engine.worker.pipeline_parallel import StageBoundary
from saeclamp_server.engine.worker.sampled_tokens import AnswerEnd, SampledTokens
from saeclamp_server.engine.worker.steered_steps import (
    KnownRequest,
    SteeredSteps,
    SteeringTables,
    StepInputs,
    with_report,
)
from saeclamp_server.steering.program import EXTRA_ARGS_KEY, RECORD_KEY


class V2RunnerAdapter:
    """Runs steered steps in one vLLM V2 runner, whose methods it wraps."""

    def __init__(
        self,
        runner: Any,
        tables: SteeringTables,
        sites: Sequence[HookState],
        boundaries: tuple[StageBoundary | None, StageBoundary | None],
    ) -> None:
        """
        sites:      in the order of their numbers, at least one
        boundaries: to the pipeline stages before and behind this one
        """
        self._runner, self._tables = runner, tables
        self._known: dict[str, KnownRequest] = {}
        """Requests that have come and not gone, by id."""
        self._steps = SteeredSteps(tables, sites, self._known.__getitem__, runner.device)
        # methods of the instance, not of a subclass: vLLM's workers make the runner themselves
        self._vllm_finish_requests = runner.finish_requests
        self._vllm_add_requests = runner.add_requests
        self._vllm_sample_tokens = runner.sample_tokens
        self._vllm_dummy_run = runner._dummy_run
        self._vllm_preprocess_state = runner.model_state.preprocess_state
        runner.finish_requests = self._finish_requests
        runner.add_requests = self._add_requests
        runner.sample_tokens = self._sample_tokens
        runner._dummy_run = self._dummy_run
        runner.model_state.preprocess_state = self._preprocess_state
        self._before, self._behind = boundaries
        self._received: IntermediateTensors | None = None
        """Sent by the stage before this one, for the step that runs."""
        if self._before is not None or self._behind is not None:
            self._vllm_execute_model = runner.execute_model
            runner.execute_model = self._execute_model
        if runner.speculative_config is not None:
            # the V1 runner, which there is for CPUs, does without Triton
            from saeclamp_server.engine.worker.draft_settlement import DraftSettlement

            self._settlement = DraftSettlement(tables.programs.num_programs, runner.device)
            self._vllm_postprocess_sampled = runner.postprocess_sampled
            runner.postprocess_sampled = self._postprocess_sampled
        # what looks at whole vectors is host code, which no captured graph runs: such steps run without
        self._sites, self._vllm_dispatch = sites, vllm_model_runner.dispatch_cg_and_sync_dp
        vllm_model_runner.dispatch_cg_and_sync_dp = self._dispatch

    def is_running(self, request_id: str) -> bool:
        """Tell whether the runner knows a request."""
        return request_id in self._known

    def _finish_requests(self, scheduler_output: Any) -> None:
        if hasattr(
            scheduler_output, WIPED
        ):  # it comes of a scheduler, not of vLLM's own warm-up: the engine has started
            begin_serving()
        wipe_blocks(self._runner, getattr(scheduler_output, WIPED, ()))
        preempted = scheduler_output.preempted_req_ids or set()
        self._tables.requests.end(scheduler_output.finished_req_ids)
        self._tables.requests.preempt(preempted)
        # one that is aborted while it is preempted comes as finished, in a later step
        for request_id in scheduler_output.finished_req_ids:
            self._known.pop(request_id, None)
        self._vllm_finish_requests(scheduler_output)

    def _add_requests(self, scheduler_output: Any) -> None:
        for new in scheduler_output.scheduled_new_reqs:
            params = new.sampling_params
            # of one that comes again after a preemption the generated tokens are part of what is computed, not of the prompt
            prompt_ids = (new.prompt_token_ids or new.prefill_token_ids)[: new.prompt_len]
            self._known[new.req_id] = KnownRequest((params and params.extra_args) or {}, prompt_ids, params)
        self._vllm_add_requests(scheduler_output)

    def _dispatch(self, *args: Any, need_eager: bool = False, **kwargs: Any) -> Any:
        return self._vllm_dispatch(*args, need_eager=need_eager or self._looks_at_vectors(), **kwargs)

    def _looks_at_vectors(self) -> bool:
        return any(state.recorder.is_recording for state in self._sites) or any(
            map(_shows_vectors, self._known.values())
        )

    def _preprocess_state(self, input_batch: Any, *args: Any) -> None:
        self._vllm_preprocess_state(input_batch, *args)
        num_requests = input_batch.num_reqs
        self._steps.begin(
            StepInputs(
                [*input_batch.req_ids],
                input_batch.num_scheduled_tokens[:num_requests],
                input_batch.num_computed_tokens_np[:num_requests],
                input_batch.query_start_loc[: num_requests + 1],
                input_batch.positions,
                input_batch.input_ids,
            )
        )
        if self._before is not None and self._steps.batch.steered:
            assert self._received is not None, "a stage behind another one"
            # vLLM copies tensors by their names, of which it knows the model's alone: `unpack` takes ours out
            self._before.unpack(self._received.tensors, self._steps.batch.contents)

    def _execute_model(
        self, scheduler_output: Any, intermediate_tensors: IntermediateTensors | None = None, **kwargs: Any
    ) -> Any:
        self._received = intermediate_tensors
        output = self._vllm_execute_model(scheduler_output, intermediate_tensors, **kwargs)
        self._received = None
        if self._behind is not None and isinstance(output, IntermediateTensors) and self._steps.batch.steered:
            # another object: vLLM's own may be that of a captured graph, which it returns at each step
            return IntermediateTensors({**output.tensors, **self._behind.pack(self._steps.batch.contents)})
        return output

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        with self._steps.dummy_step(kwargs.get("is_profile", False)):
            return self._vllm_dummy_run(*args, **kwargs)

    def _postprocess_sampled(
        self, idx_mapping: Tensor, sampled_tokens: Tensor, num_sampled: Tensor, *args: Any, **kwargs: Any
    ) -> None:
        # first vLLM's own, which takes rejected drafts off the number of computed tokens
        self._vllm_postprocess_sampled(idx_mapping, sampled_tokens, num_sampled, *args, **kwargs)
        batch, num_computed = self._steps.batch, self._runner.req_states.num_computed_tokens.gpu
        if batch.steered:
            sampled = SampledTokens(idx_mapping, sampled_tokens, num_sampled, num_computed)
            self._steps.settle(self._settlement.find_kept(batch.program, self._answer_ends, sampled))

    def _answer_ends(self) -> list[AnswerEnd]:
        known = map(self._known.__getitem__, self._steps.batch.request_ids)
        return [AnswerEnd.from_params(one.params, len(one.prompt_ids)) for one in known]

    def _sample_tokens(self, grammar_output: Any) -> Any:
        # taken before vLLM samples, which clears it
        state = self._runner.execute_model_state
        # told once, at the last stage
        has_report = state is not None and self._behind is None
        fetch = self._steps.collect(state.hidden_states) if has_report else None
        output = self._vllm_sample_tokens(grammar_output)
        self._steps.forget()
        return output if fetch is None else with_report(output, fetch)


def _shows_vectors(known: KnownRequest) -> bool:
    """Tell whether a request's prompt is recorded, or its strongest features are shown."""
    program = known.extra_args.get(EXTRA_ARGS_KEY, {}).get("program", {})
    return RECORD_KEY in known.extra_args or bool((program.get("readout") or {}).get("top_k"))
