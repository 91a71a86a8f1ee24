"""
Worker process: the adapter to vLLM's V1 model runner (`GPUModelRunner` and its CPU subclass).

After `_prepare_inputs` the batch order of the step is fixed and the token ids are on the device; there the step inputs of
every SAE and site are built. The step report leaves with the sampled tokens, in what `sample_tokens` returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.sequence import IntermediateTensors
from vllm.v1.outputs import AsyncModelRunnerOutput

from saeclamp_server.engine.lifeline import begin_serving
from saeclamp_server.engine.step_report import ATTRIBUTE, WIPED, RequestStepReport
from saeclamp_server.engine.worker.kv_wipe import wipe_blocks
from saeclamp_server.engine.worker.ops import HookState
from saeclamp_server.engine.worker.pipeline_parallel import StageBoundary
from saeclamp_server.engine.worker.prompt_means import PromptMeanRecorder
from saeclamp_server.engine.worker.report_builder import abort_rule_slots, collect_step_report
from saeclamp_server.engine.worker.request_states import RequestStates, ScheduledRequest
from saeclamp_server.engine.worker.step_inputs import StepInputBuilder
from saeclamp_server.engine.worker.step_plan import RequestSlice, StepLayout
from saeclamp_server.steering.program import EXTRA_ARGS_KEY, RECORD_KEY


class RunnerAdapter:
    """Builds step inputs and collects step reports for one vLLM V1 runner, whose methods it wraps."""

    def __init__(
        self,
        runner: Any,
        input_builder: StepInputBuilder,
        sites: Sequence[HookState],
        requests: RequestStates,
        prompt_means: PromptMeanRecorder,
        boundaries: tuple[StageBoundary | None, StageBoundary | None],
    ) -> None:
        """
        sites:      in the order of their numbers, at least one
        boundaries: to the pipeline stages before and behind this one
        """
        self._runner = runner
        self._input_builder = input_builder
        self._sites = sites
        self._step_outputs, self._edit_stats = sites[0].step_outputs, sites[0].edit_stats
        self._requests, self._prompt_means = requests, prompt_means
        self._before, self._behind = boundaries
        self._slices: dict[str, RequestSlice] = {}
        """Slices of the step's steered requests, by request id, in the order of the batch; none between steps."""
        self._layout = StepLayout([])
        self._failures: dict[str, str] = {}
        """Reasons why requests of the step cannot be steered, by request id."""
        self._earlier: Tensor | None = None
        """(num_rules,), first positions at which the step's aborting rules held at earlier stages; None without such."""
        # methods of the instance, not of a subclass: vLLM's workers make the runner themselves
        self._vllm_update_states = runner._update_states
        self._vllm_prepare_inputs = runner._prepare_inputs
        self._vllm_sample_tokens = runner.sample_tokens
        self._vllm_dummy_run = runner._dummy_run
        runner._update_states = self._update_states
        runner._prepare_inputs = self._prepare_inputs
        runner.sample_tokens = self._sample_tokens
        runner._dummy_run = self._dummy_run
        if self._before is not None:
            self._vllm_gather = runner.sync_and_gather_intermediate_tensors
            runner.sync_and_gather_intermediate_tensors = self._gather_intermediate_tensors
        if self._behind is not None:
            self._vllm_execute_model = runner.execute_model
            runner.execute_model = self._execute_model
        # these are n-gram drafts, the only ones that the server lets in: vLLM schedules synchronously then, so the accepted
        # tokens are on the host when it books them
        if runner.speculative_config is not None:
            self._edit_stats.is_deferred = self._step_outputs.rule_states.is_deferred = True
            self._vllm_bookkeeping_sync = runner._bookkeeping_sync
            runner._bookkeeping_sync = self._commit_accepted

    def _update_states(self, scheduler_output: Any) -> Any:
        begin_serving()  # at the first step the engine has started
        # before vLLM's own update, which may copy other blocks into those that are wiped
        wipe_blocks(self._runner, getattr(scheduler_output, WIPED, ()))
        # before slices are made: an id that has ended may come again in this very step, as another request
        self._requests.end(scheduler_output.finished_req_ids)
        return self._vllm_update_states(scheduler_output)

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: NDArray[np.int32]) -> Any:
        prepared = self._vllm_prepare_inputs(scheduler_output, num_scheduled_tokens)
        self._slices_of_step(num_scheduled_tokens)
        # at later stages it comes afterwards, with the hidden states
        self._earlier = None
        self._layout = self._input_builder.build([*self._slices.values()], self._runner.input_ids.gpu)
        self._choose_recorded_tokens(num_scheduled_tokens)
        return prepared

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        # a dummy batch must not run the steps of the last real one
        self._forget_step()
        self._prompt_means.begin_step()
        self._layout = self._input_builder.build([], self._runner.input_ids.gpu)
        return self._vllm_dummy_run(*args, **kwargs)

    def _slices_of_step(self, num_scheduled_tokens: NDArray[np.int32]) -> None:
        requests, batch = self._runner.requests, self._runner.input_batch
        self._slices, self._failures = {}, {}
        self._prompt_means.begin_step()
        first_row = 0
        for index, (request_id, num_tokens) in enumerate(
            zip(batch.req_ids, num_scheduled_tokens.tolist(), strict=True)
        ):
            request = requests[request_id]
            params = request.sampling_params
            if params is not None and params.extra_args and RECORD_KEY in params.extra_args:
                asked, prompt_ids = params.extra_args[RECORD_KEY], request.prompt_token_ids or []
                first = int(batch.num_computed_tokens_cpu[index])
                self._prompt_means.point(asked, prompt_ids, first_row, num_tokens, first)
            if params is not None and params.extra_args and EXTRA_ARGS_KEY in params.extra_args:
                payload, prompt_ids = params.extra_args[EXTRA_ARGS_KEY], request.prompt_token_ids or []
                position = int(batch.num_computed_tokens_cpu[index])
                req_slice = self._requests.slice_of(
                    ScheduledRequest(request_id, payload, prompt_ids, first_row, num_tokens, position)
                )
                if req_slice is not None:
                    self._slices[request_id] = req_slice
                else:
                    self._failures[request_id] = self._requests.failures[request_id][1]
            first_row += num_tokens

    def _choose_recorded_tokens(self, num_scheduled_tokens: NDArray[np.int32]) -> None:
        """Let recorders take prompt positions only: not padding, not generated tokens."""
        if not any(state.recorder.is_recording for state in self._sites):
            return
        batch, rows, first_row = self._runner.input_batch, [], 0
        for index, num_tokens in enumerate(num_scheduled_tokens.tolist()):
            left = int(batch.num_prompt_tokens[index]) - int(batch.num_computed_tokens_cpu[index])
            rows.append(np.arange(first_row, first_row + max(0, min(num_tokens, left))))
            first_row += num_tokens
        for state in self._sites:
            state.recorder.rows = torch.from_numpy(np.concatenate(rows)).to(self._runner.device)

    def _commit_accepted(self, scheduler_output: Any, *args: Any) -> Any:
        # vLLM's booking appends the sampled tokens to the requests' output
        num_before = {request_id: self._num_output(request_id) for request_id in self._slices}
        booked = self._vllm_bookkeeping_sync(scheduler_output, *args)
        sampled: list[list[int]] = booked[3]
        is_kept = torch.ones(scheduler_output.total_num_scheduled_tokens, dtype=torch.bool)
        for request_id, req_slice in self._slices.items():
            own = sampled[self._runner.input_batch.req_id_to_index[request_id]]
            # none in a step that computes only a part of the prompt, which has no drafts either
            if own:
                # the answer's newest token is not counted: it has not been fed yet, or would not have been without drafts
                end = (
                    req_slice.prompt_len
                    + num_before[request_id]
                    + self._num_kept(request_id, own, num_before[request_id])
                    - 1
                )
                is_kept[
                    req_slice.first_row + max(0, end - req_slice.position) : req_slice.first_row + req_slice.num_tokens
                ] = False
                self._requests.roll_back(request_id, end)
        is_kept = is_kept.to(self._runner.device)
        self._edit_stats.commit_accepted(is_kept)
        self._step_outputs.rule_states.commit_accepted(is_kept)
        return booked

    def _num_output(self, request_id: str) -> int:
        return len(self._runner.requests[request_id].output_token_ids)

    def _num_kept(self, request_id: str, sampled: Sequence[int], num_before: int) -> int:
        """Count the tokens that stay of those sampled at once: the scheduler cuts them behind the end of the answer."""
        # as in vLLM's `check_stop`; the context's length is no bound here, as no drafts are scheduled beyond it
        params = self._runner.requests[request_id].sampling_params
        for number, token in enumerate(sampled, 1):
            if token in params.all_stop_token_ids or num_before + number >= (params.max_tokens or math.inf):
                return number
        return len(sampled)

    def _gather_intermediate_tensors(self, num_tokens: int, intermediate_tensors: Any, *args: Any) -> Any:
        if intermediate_tensors is not None and self._slices:
            # before vLLM copies the tensors by their names, of which it knows the model's alone: `unpack` takes ours out
            num_rules = len(abort_rule_slots(self._slices.values()))
            self._earlier = self._before.unpack(intermediate_tensors.tensors, num_rules)  # type: ignore[union-attr]
        return self._vllm_gather(num_tokens, intermediate_tensors, *args)

    def _execute_model(self, *args: Any, **kwargs: Any) -> Any:
        output = self._vllm_execute_model(*args, **kwargs)
        if isinstance(output, IntermediateTensors) and self._slices:
            output.tensors |= self._behind.pack(self._first_abort_positions())  # type: ignore[union-attr]
        self._forget_step()
        return output

    def _first_abort_positions(self) -> Tensor:
        """Return the first position at which each of the step's aborting rules held, at this stage or an earlier one."""
        slots = torch.tensor(abort_rule_slots(self._slices.values()), dtype=torch.int64, device=self._runner.device)
        first_aborts = self._step_outputs.rule_states.first(slots)
        return first_aborts if self._earlier is None else torch.minimum(first_aborts, self._earlier)

    def _sample_tokens(self, grammar_output: Any) -> Any:
        if not self._slices and not self._failures:
            return self._vllm_sample_tokens(grammar_output)
        # taken before vLLM samples, which clears it, and whose booking (`_commit_accepted`) changes the rule states
        state = self._runner.execute_model_state
        last_hidden = None if state is None else state.hidden_states
        fetch_report = collect_step_report(
            self._slices, self._layout, self._step_outputs, self._first_abort_positions(), self._failures, last_hidden
        )
        fetch = fetch_report and self._noting_failures(fetch_report)
        output = self._vllm_sample_tokens(grammar_output)
        # told once, at the last stage: a step without tokens returns an output that all such steps share
        self._forget_step()
        if fetch is None:
            return output
        # under asynchronous scheduling the next step is prepared meanwhile, so nothing may wait for the device here
        if isinstance(output, AsyncModelRunnerOutput):
            return AsyncOutputWithReport(output, fetch)
        setattr(output, ATTRIBUTE, fetch())
        return output

    def _noting_failures(
        self, fetch: Callable[[], dict[str, RequestStepReport]]
    ) -> Callable[[], dict[str, RequestStepReport]]:
        # looked up now: when a report is fetched asynchronously, its request may have ended here
        keys = {name: key for name in self._slices if (key := self._requests.key(name)) is not None}

        def fetch_and_note() -> dict[str, RequestStepReport]:
            report = fetch()
            for request_id, one in report.items():
                if one.failure is not None and request_id in keys:
                    self._requests.fail(request_id, keys[request_id], one.failure)
            return report

        return fetch_and_note

    def _forget_step(self) -> None:
        self._slices, self._failures = {}, {}


class AsyncOutputWithReport(AsyncModelRunnerOutput):
    """vLLM's output that is still on its way from the device, with the step reports."""

    def __init__(self, output: AsyncModelRunnerOutput, fetch: Callable[[], dict[str, RequestStepReport]]) -> None:
        self._output, self._fetch = output, fetch

    def get_output(self) -> Any:
        """Wait for the output and the step reports."""
        output = self._output.get_output()
        setattr(output, ATTRIBUTE, self._fetch())
        return output
