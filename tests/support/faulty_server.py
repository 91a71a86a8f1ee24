"""`saeclamp serve` with a worker that fails on purpose, for the tests of faults."""

from __future__ import annotations

from typing import Any

import saeclamp_server.startup.vllm_settings as settings
from saeclamp_server.__main__ import main
from saeclamp_server.engine.worker.cpu_worker import SteeringCPUWorker
from saeclamp_server.engine.worker.request_states import RequestStates, ScheduledRequest

FAILS_AT_ADMISSION = 13
FAILS_AFTER_TOKENS = 14
NUM_GOOD_STEPS = 5


class FaultyWorker(SteeringCPUWorker):
    """Cannot admit programs that name feature 13, and loses those that name feature 14 while they run."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        admit, req_slice, steps = self._requests._register, self._requests._slice_of, dict[str, int]()

        def failing_admit(payload: Any, prompt_ids: Any) -> Any:
            if payload["program"]["edits"][0]["index"] == FAILS_AT_ADMISSION:
                raise RuntimeError("no room for its rows")
            return admit(payload, prompt_ids)

        def failing_span(scheduled: ScheduledRequest) -> Any:
            steps[scheduled.request_id] = steps.get(scheduled.request_id, 0) + 1
            feature = scheduled.payload["program"]["edits"][0]["index"]
            if feature == FAILS_AFTER_TOKENS and steps[scheduled.request_id] > NUM_GOOD_STEPS:
                raise RuntimeError("its rows were lost")
            return req_slice(scheduled)

        live: RequestStates = self._requests
        live._register, live._slice_of = failing_admit, failing_span  # type: ignore[method-assign]


if __name__ == "__main__":
    settings._worker_class = lambda platform: "tests.support.faulty_server.FaultyWorker"
    main()
