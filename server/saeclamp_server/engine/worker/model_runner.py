"""
Worker process: the adapter to vLLM's V1 model runner (`GPUModelRunner` and its CPU subclass).

`_update_states` says which requests have gone. After `_prepare_inputs` the batch order of the step is fixed and the token
ids are on the device; there tokens are mapped to programs. The step report leaves with the sampled tokens, in what
`sample_tokens` returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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
from saeclamp_server.engine.worker.pipeline_parallel import StageBoundary, StepContents
from saeclamp_server.engine.worker.program_layout import FOREVER
from saeclamp_server.engine.worker.program_tables import ProgramTables
from saeclamp_server.engine.worker.prompt_means import PromptMeanRecorder
from saeclamp_server.engine.worker.readout_plan import RequestSlice, plan_top_features
from saeclamp_server.engine.worker.report_builder import collect_step_report
from saeclamp_server.engine.worker.request_states import RequestStates, SteeredRequest
from saeclamp_server.engine.worker.step_tables import Batch, StepTables
from saeclamp_server.engine.worker.top_features import TopFeatureFinder
from saeclamp_server.engine.worker.torch_executor import TorchExecutor
from saeclamp_server.steering.program import EXTRA_ARGS_KEY, RECORD_KEY


class SteeringTables(NamedTuple):
    """What a worker steers by."""

    programs: ProgramTables
    step: StepTables
    executor: TorchExecutor
    requests: RequestStates
    top_features: TopFeatureFinder
    prompt_means: PromptMeanRecorder


class _BatchPrograms(NamedTuple):
    """What the requests of a batch ask for; the same from step to step as long as the batch is."""

    request_ids: Sequence[str]
    """In the order of the batch."""
    version: int
    """Of the request states."""
    program: Tensor
    """(num_requests,) int32, on the device; -1: none"""
    steered: Mapping[str, SteeredRequest]
    telling: Sequence[tuple[int, str]]
    """(place in the batch, id) of requests whose programs report on each step."""
    recorded: Sequence[tuple[int, str]]
    """The same of requests whose prompts are recorded."""
    failures: Mapping[str, str]
    """Reasons of requests that cannot be steered, by id."""
    contents: StepContents


class RunnerAdapter:
    """Maps tokens to programs and collects step reports for one vLLM V1 runner, whose methods it wraps."""

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
        self._runner, self._tables, self._sites = runner, tables, sites
        self._before, self._behind = boundaries
        self._batch = self._last = self._nothing = self._programs_of([])
        """Of the step's batch; without requests between steps. `_last` is that of the last step."""
        self._slices: dict[str, RequestSlice] = {}
        """Slices of the step's requests that report on it, by request id, in the order of the batch."""
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
            self._vllm_bookkeeping_sync = runner._bookkeeping_sync
            runner._bookkeeping_sync = self._settle

    def _update_states(self, scheduler_output: Any) -> Any:
        begin_serving()  # at the first step the engine has started
        # before vLLM's own update, which may copy other blocks into those that are wiped
        wipe_blocks(self._runner, getattr(scheduler_output, WIPED, ()))
        # before requests are admitted: an id that has ended may come again in this very step, as another request, and its
        # number in the tables is free for one that comes
        self._tables.requests.end(scheduler_output.finished_req_ids)
        self._tables.requests.preempt(scheduler_output.preempted_req_ids or ())
        return self._vllm_update_states(scheduler_output)

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: NDArray[np.int32]) -> Any:
        prepared = self._vllm_prepare_inputs(scheduler_output, num_scheduled_tokens)
        runner, tables, request_ids = self._runner, self._tables, self._runner.input_batch.req_ids
        if self._last.request_ids != request_ids or self._last.version != tables.requests.version:
            self._last = self._programs_of(request_ids)
        self._batch = self._last
        if self._batch.steered:
            num_requests, num_tokens = len(request_ids), int(num_scheduled_tokens.sum())
            first_row = runner.query_start_loc.gpu[: num_requests + 1]
            batch = Batch(self._batch.program, first_row, runner.positions, runner.input_ids.gpu, num_tokens)
            tables.executor.map_tokens(batch)
        else:
            tables.step.clear()
        self._plan_what_is_shown(num_scheduled_tokens)
        self._choose_recorded_tokens(num_scheduled_tokens)
        return prepared

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        # a dummy batch must not run the steps of the last real one
        self._forget_step()
        self._tables.step.clear()
        self._tables.prompt_means.begin_step()
        self._tables.top_features.begin({}, self._tables.step)
        return self._vllm_dummy_run(*args, **kwargs)

    def _programs_of(self, request_ids: Sequence[str]) -> _BatchPrograms:
        """Admit the requests of a batch that are new, and find the programs of all."""
        requests = self._tables.requests
        numbers, steered, failures = [-1] * len(request_ids), dict[str, SteeredRequest](), dict[str, str]()
        telling, recorded = [], []
        for place, request_id in enumerate(request_ids):
            request = self._runner.requests[request_id]
            extra = (request.sampling_params and request.sampling_params.extra_args) or {}
            if RECORD_KEY in extra:
                recorded.append((place, request_id))
            if EXTRA_ARGS_KEY not in extra:
                continue
            admitted = requests.admit(request_id, extra[EXTRA_ARGS_KEY], request.prompt_token_ids or [])
            if admitted is None:
                failures[request_id] = requests.failures[request_id][1]
                continue
            assert admitted.number is not None, "it runs"
            numbers[place], steered[request_id] = admitted.number, admitted
            if admitted.program.reports_steps:
                telling.append((place, request_id))
        programs = [one.program for one in steered.values()]
        contents = StepContents(
            [number for number in numbers if number >= 0],
            max((program.num_reads for program in programs), default=0),
            any(program.itemised for program in programs),
        )
        program = torch.tensor(numbers, dtype=torch.int32).to(self._runner.device)
        return _BatchPrograms([*request_ids], requests.version, program, steered, telling, recorded, failures, contents)

    def _plan_what_is_shown(self, num_scheduled_tokens: NDArray[np.int32]) -> None:
        """Find the rows of those few requests of which the host must know them."""
        tables, batch = self._tables, self._runner.input_batch
        self._slices = {}
        tables.prompt_means.begin_step()
        if self._batch.telling or self._batch.recorded:
            first_rows = (np.cumsum(num_scheduled_tokens) - num_scheduled_tokens).tolist()
            for place, request_id in self._batch.telling:
                num, position = int(num_scheduled_tokens[place]), int(batch.num_computed_tokens_cpu[place])
                steered = self._batch.steered[request_id]
                assert steered.number is not None, "it runs"
                self._slices[request_id] = RequestSlice(
                    steered.program, steered.number, first_rows[place], num, position
                )
            for place, request_id in self._batch.recorded:
                request = self._runner.requests[request_id]
                asked = request.sampling_params.extra_args[RECORD_KEY]
                num, position = int(num_scheduled_tokens[place]), int(batch.num_computed_tokens_cpu[place])
                tables.prompt_means.point(asked, request.prompt_token_ids or [], first_rows[place], num, position)
        tables.top_features.begin(plan_top_features(self._slices.values()), tables.step)

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

    def _settle(self, scheduler_output: Any, *args: Any) -> Any:
        # vLLM's booking appends the sampled tokens to the requests' output
        num_before = {request_id: self._num_output(request_id) for request_id in self._batch.steered}
        booked = self._vllm_bookkeeping_sync(scheduler_output, *args)
        sampled: list[list[int]] = booked[3]
        kept_to = torch.full((self._tables.programs.num_programs,), FOREVER, dtype=torch.int64)
        for request_id, request in self._batch.steered.items():
            own = sampled[self._runner.input_batch.req_id_to_index[request_id]]
            # none in a step that computes only a part of the prompt, which has no drafts either
            if own:
                num_kept = num_before[request_id] + self._num_kept(request_id, own, num_before[request_id])
                # the answer's newest token is not counted: it has not been fed yet, or would not have been without drafts
                kept_to[request.number] = request.program.prompt_len + num_kept - 1
        self._tables.executor.settle(kept_to.to(self._runner.device))
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
        if intermediate_tensors is not None and self._batch.steered:
            # before vLLM copies the tensors by their names, of which it knows the model's alone: `unpack` takes ours out
            self._before.unpack(intermediate_tensors.tensors, self._batch.contents)  # type: ignore[union-attr]
        return self._vllm_gather(num_tokens, intermediate_tensors, *args)

    def _execute_model(self, *args: Any, **kwargs: Any) -> Any:
        output = self._vllm_execute_model(*args, **kwargs)
        if isinstance(output, IntermediateTensors) and self._batch.steered:
            output.tensors |= self._behind.pack(self._batch.contents)  # type: ignore[union-attr]
        self._forget_step()
        return output

    def _sample_tokens(self, grammar_output: Any) -> Any:
        batch, tables = self._batch, self._tables
        if not batch.steered and not batch.failures:
            return self._vllm_sample_tokens(grammar_output)
        # taken before vLLM samples, which clears it, and whose booking (`_settle`) changes the tables
        state = self._runner.execute_model_state
        fetch_report = collect_step_report(
            self._slices,
            {one.number: request_id for request_id, one in batch.steered.items() if one.number is not None},
            tables.programs,
            tables.step,
            tables.top_features.found,
            batch.failures,
            None if state is None else state.hidden_states,
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
        requests = self._tables.requests
        # looked up now: when a report is fetched asynchronously, its request may have ended here
        keys = {name: request.key for name, request in self._batch.steered.items()}

        def fetch_and_note() -> dict[str, RequestStepReport]:
            report = fetch()
            for request_id, one in report.items():
                if one.failure is not None and request_id in keys:
                    requests.fail(request_id, keys[request_id], one.failure)
            return report

        return fetch_and_note

    def _forget_step(self) -> None:
        self._batch, self._slices = self._nothing, {}


class AsyncOutputWithReport(AsyncModelRunnerOutput):
    """vLLM's output that is still on its way from the device, with the step reports."""

    def __init__(self, output: AsyncModelRunnerOutput, fetch: Callable[[], dict[str, RequestStepReport]]) -> None:
        self._output, self._fetch = output, fetch

    def get_output(self) -> Any:
        """Wait for the output and the step reports."""
        output = self._output.get_output()
        setattr(output, ATTRIBUTE, self._fetch())
        return output
