"""
Worker process: what is done in each step of vLLM, whichever of its model runners runs it.

Before a forward, tokens are mapped to the programs of their requests; behind it, what it showed is collected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.v1.outputs import AsyncModelRunnerOutput

from saeclamp_server.engine.step_report import ATTRIBUTE, RequestStepReport
from saeclamp_server.engine.worker.device_copies import CopyStream, upload
from saeclamp_server.engine.worker.executor import Executor
from saeclamp_server.engine.worker.ops import HookState
from saeclamp_server.engine.worker.pipeline_parallel import StepContents
from saeclamp_server.engine.worker.program_tables import ProgramTables
from saeclamp_server.engine.worker.prompt_means import PromptMeanRecorder
from saeclamp_server.engine.worker.readout_plan import RequestSlice, plan_top_features
from saeclamp_server.engine.worker.report_builder import BatchRows, collect_step_report
from saeclamp_server.engine.worker.request_states import RequestStates, SteeredRequest
from saeclamp_server.engine.worker.step_tables import Batch, StepTables
from saeclamp_server.engine.worker.top_features import TopFeatureFinder
from saeclamp_server.steering.program import EXTRA_ARGS_KEY, RECORD_KEY


class SteeringTables(NamedTuple):
    """All that a worker steers by."""

    programs: ProgramTables
    step: StepTables
    executor: Executor
    requests: RequestStates
    top_features: TopFeatureFinder
    prompt_means: PromptMeanRecorder


class KnownRequest(NamedTuple):
    """A request as its runner knows it."""

    extra_args: Mapping[str, Any]
    """Extra arguments of its sampling parameters: our payloads are among them."""
    prompt_ids: Sequence[int]
    params: Any = None
    """Its sampling parameters, where drafts are settled by them."""


class StepInputs(NamedTuple):
    """The batch of a step, as its runner has laid it out."""

    request_ids: Sequence[str]
    """In the order of the batch; and so are those that follow."""
    num_scheduled: NDArray[np.int32]
    """(num_requests,), tokens of each request"""
    num_computed: NDArray[np.int32]
    """(num_requests,), position of the first of them"""
    first_row: Tensor
    """(num_requests + 1,), on the device, row of the first of them; the last one is behind all tokens"""
    positions: Tensor
    """(num_tokens or more,), on the device"""
    input_ids: Tensor
    """(num_tokens or more,), on the device: the host may not know the last sampled ones yet"""


class BatchPrograms(NamedTuple):
    """Programs of the requests of a batch; the same from step to step as long as the batch is."""

    request_ids: Sequence[str]
    version: int
    """Version of the request states."""
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


class SteeredSteps:
    """The steps of one worker."""

    def __init__(
        self,
        tables: SteeringTables,
        sites: Sequence[HookState],
        known: Callable[[str], KnownRequest],
        device: torch.device,
    ) -> None:
        """
        sites: in the order of their numbers, at least one
        known: looks up a request of the batch, by its id
        """
        self.tables, self._sites, self._known, self._device = tables, sites, known, device
        self._nothing = self._last = self.batch = self._programs_of([])
        """`batch` is that of the step, without requests between steps; `_last` that of the last step."""
        self._rows = BatchRows([], np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._copy_stream = CopyStream(device)
        self.slices: dict[str, RequestSlice] = {}
        """Slices of the step's requests that report on it, by request id, in the order of the batch."""

    def begin(self, inputs: StepInputs) -> None:
        """Map the tokens of a step, whose batch has been laid out."""
        tables = self.tables
        self._copy_stream.join()  # from here on the tables of the last step are written to
        if self._last.request_ids != inputs.request_ids or self._last.version != tables.requests.version:
            self._last = self._programs_of(inputs.request_ids)
        self.batch = self._last
        if self.batch.steered or self.batch.recorded:
            # copies: a runner may write the next batch's numbers to the same memory before this one's report is made
            first_row = np.cumsum(inputs.num_scheduled, dtype=np.int64) - inputs.num_scheduled
            self._rows = BatchRows(self.batch.request_ids, first_row, inputs.num_computed.astype(np.int64))
        if self.batch.steered:
            num_tokens = int(inputs.num_scheduled.sum())
            batch = Batch(self.batch.program, inputs.first_row, inputs.positions, inputs.input_ids, num_tokens)
            tables.executor.map_tokens(batch)
        else:
            tables.executor.clear()
        self._plan_what_is_shown(inputs)
        self._choose_recorded_tokens(inputs)

    @contextmanager
    def dummy_step(self, is_profile: bool = False) -> Iterator[None]:
        """
        Surround a step without requests: it must not run the one before.

        is_profile: True where vLLM measures the step's memory, to give the rest to its KV cache
        """
        self._begin_without_requests()
        for state in self._sites:
            state.reserves_scratch = is_profile
        try:
            yield
        finally:
            for state in self._sites:
                state.reserves_scratch = False

    def _begin_without_requests(self) -> None:
        self._copy_stream.join()
        self.forget()
        self.tables.executor.clear()
        self.tables.prompt_means.begin_step()
        self.tables.top_features.begin({}, self.tables.step)

    def forget(self) -> None:
        """End a step."""
        self.batch, self.slices = self._nothing, {}

    def collect(self, last_hidden: Tensor | None) -> Callable[[], dict[str, RequestStepReport]] | None:
        """
        Send for what a forward showed, and return the function that makes step reports of it; None where there is none.

        last_hidden: (num_tokens, width), the model's last hidden states
        """
        tables, batch = self.tables, self.batch
        if not batch.steered and not batch.failures:
            return None
        if batch.steered and last_hidden is not None:
            tables.executor.find_lost(last_hidden)
        fetch = collect_step_report(
            self.slices,
            self._rows,
            tables.programs,
            tables.step,
            tables.top_features.found,
            batch.failures,
            self._copy_stream,
        )
        return self._noting_failures(fetch)

    def settle(self, kept_to: Tensor) -> None:
        """Count what was done at tokens that stay; see `Executor.settle`."""
        self._copy_stream.join()
        self.tables.executor.settle(kept_to)

    def _noting_failures(
        self, fetch: Callable[[], dict[str, RequestStepReport]]
    ) -> Callable[[], dict[str, RequestStepReport]]:
        requests = self.tables.requests
        # looked up now: when a report is fetched asynchronously, its request may have ended here
        keys = {name: request.key for name, request in self.batch.steered.items()}

        def fetch_and_note() -> dict[str, RequestStepReport]:
            report = fetch()
            for request_id, one in report.items():
                if one.failure is not None and request_id in keys:
                    requests.fail(request_id, keys[request_id], one.failure)
            return report

        return fetch_and_note

    def _programs_of(self, request_ids: Sequence[str]) -> BatchPrograms:
        """Admit the requests of a batch that are new, and find the programs of all."""
        requests = self.tables.requests
        numbers, steered, failures = [-1] * len(request_ids), dict[str, SteeredRequest](), dict[str, str]()
        telling, recorded = [], []
        for place, request_id in enumerate(request_ids):
            known = self._known(request_id)
            if RECORD_KEY in known.extra_args:
                recorded.append((place, request_id))
            if EXTRA_ARGS_KEY not in known.extra_args:
                continue
            admitted = requests.admit(request_id, known.extra_args[EXTRA_ARGS_KEY], known.prompt_ids)
            if admitted is None:
                failures[request_id] = requests.failures[request_id][1]
                continue
            assert admitted.number is not None, "it runs"
            if request_id in requests.failures:  # a step has failed it: told at each step until the scheduler ends it
                failures[request_id] = requests.failures[request_id][1]
            numbers[place], steered[request_id] = admitted.number, admitted
            if admitted.program.reports_steps:
                telling.append((place, request_id))
        programs = [one.program for one in steered.values()]
        contents = StepContents(
            [number for number in numbers if number >= 0],
            max((program.num_reads for program in programs), default=0),
            any(program.itemised for program in programs),
        )
        program = upload(np.array(numbers, np.int32), self._device)
        return BatchPrograms([*request_ids], requests.version, program, steered, telling, recorded, failures, contents)

    def _plan_what_is_shown(self, inputs: StepInputs) -> None:
        """Find the rows of those few requests of which the host must know them."""
        tables = self.tables
        self.slices = {}
        tables.prompt_means.begin_step()
        if self.batch.telling or self.batch.recorded:
            first_rows, positions = self._rows.first_row.tolist(), self._rows.position.tolist()
            for place, request_id in self.batch.telling:
                num, position = int(inputs.num_scheduled[place]), positions[place]
                steered = self.batch.steered[request_id]
                assert steered.number is not None, "it runs"
                self.slices[request_id] = RequestSlice(
                    steered.program, steered.number, first_rows[place], num, position
                )
            for place, request_id in self.batch.recorded:
                known, num = self._known(request_id), int(inputs.num_scheduled[place])
                asked = known.extra_args[RECORD_KEY]
                tables.prompt_means.point(asked, known.prompt_ids, first_rows[place], num, positions[place])
        tables.top_features.begin(plan_top_features(self.slices.values()), tables.step)

    def _choose_recorded_tokens(self, inputs: StepInputs) -> None:
        """Let recorders take prompt positions only: not padding, not generated tokens."""
        if not any(state.recorder.is_recording for state in self._sites):
            return
        rows, first_row = [], 0
        for place, num_tokens in enumerate(inputs.num_scheduled.tolist()):
            left = len(self._known(inputs.request_ids[place]).prompt_ids) - int(inputs.num_computed[place])
            rows.append(np.arange(first_row, first_row + max(0, min(num_tokens, left))))
            first_row += num_tokens
        recorded = upload(np.concatenate(rows), self._device)
        for state in self._sites:
            state.recorder.rows = recorded


def with_report(output: Any, fetch: Callable[[], dict[str, RequestStepReport]]) -> Any:
    """
    Put step reports on a runner's output, on which they leave.

    Under asynchronous scheduling the next step is prepared meanwhile, so nothing waits for the device here.
    """
    if isinstance(output, AsyncModelRunnerOutput):
        return AsyncOutputWithReport(output, fetch)
    setattr(output, ATTRIBUTE, fetch())
    return output


class AsyncOutputWithReport(AsyncModelRunnerOutput):
    """vLLM's output that is still on its way from the device, with the step reports."""

    def __init__(self, output: AsyncModelRunnerOutput, fetch: Callable[[], dict[str, RequestStepReport]]) -> None:
        self._output, self._fetch = output, fetch

    def get_output(self) -> Any:
        """Wait for the output and the step reports."""
        output = self._output.get_output()
        setattr(output, ATTRIBUTE, self._fetch())
        return output

    def get_kv_connector_output(self) -> Any:
        """Return what vLLM's own output has; it asks for it since 0.33."""
        return self._output.get_kv_connector_output()
