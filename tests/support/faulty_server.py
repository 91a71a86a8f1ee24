"""`saeclamp serve` with a worker that fails on purpose, for the tests of faults."""

from __future__ import annotations

from typing import Any

import saeclamp_server.startup.vllm_settings as settings
from saeclamp_server.__main__ import main
from saeclamp_server.engine.worker.cpu_worker import SteeringCPUWorker
from saeclamp_server.engine.worker.program_layout import FEATURE
from saeclamp_server.engine.worker.request_states import RequestStates

FAILS_AT_ADMISSION = 13
FAILS_AFTER_TOKENS = 14
NUM_GOOD_STEPS = 5


class FaultyWorker(SteeringCPUWorker):
    """Cannot admit programs that name feature 13, and loses those that name feature 14 while they run."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        live: RequestStates = self._requests
        admit, update, steps = live._register, self.model_runner._update_states, dict[str, int]()

        def failing_admit(payload: Any, prompt_ids: Any) -> Any:
            if payload["program"]["edits"][0]["index"] == FAILS_AT_ADMISSION:
                raise RuntimeError("no room for its rows")
            return admit(payload, prompt_ids)

        def failing_update(scheduler_output: Any) -> Any:
            for request_id in live._requests.keys() - scheduler_output.finished_req_ids:
                request = live._requests[request_id]
                steps[request_id] = steps.get(request_id, 1) + 1  # the first made it known
                is_named = (request.program.edits.ints[:, FEATURE] == FAILS_AFTER_TOKENS).any()
                if is_named and steps[request_id] > NUM_GOOD_STEPS:
                    live.fail(request_id, request.key, "RuntimeError: its rows were lost")
            return update(scheduler_output)

        live._register = failing_admit  # type: ignore[method-assign]
        self.model_runner._update_states = failing_update


if __name__ == "__main__":
    settings._worker_class = lambda platform: "tests.support.faulty_server.FaultyWorker"
    main()
