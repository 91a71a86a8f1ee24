"""
Worker process: the worker for CPUs.

A module of its own, because importing vLLM's CPU worker changes the process that it is imported into.
"""

from typing import Any

from vllm.distributed import get_pp_group
from vllm.v1.worker.cpu_worker import CPUWorker

from saeclamp_server.engine.worker.cpu_draft_fix import repeat_sampling_parameters_of_drafts
from saeclamp_server.engine.worker.cpu_seed_fix import keep_generators_of_partial_prefills
from saeclamp_server.engine.worker.worker import SteeringWorker


class SteeringCPUWorker(SteeringWorker, CPUWorker):
    """vLLM's CPU worker, steered."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load and hook the model, and apply the work-arounds for CPUs."""
        super().load_model(*args, **kwargs)
        if self.use_v2_model_runner:
            return
        keep_generators_of_partial_prefills(self.model_runner)
        repeat_sampling_parameters_of_drafts()
        if not get_pp_group().is_first_rank:
            _allocate_intermediate_tensors(self.model_runner)


def _allocate_intermediate_tensors(runner: Any) -> None:
    """Allocate what the stage before sends; vLLM does so in a dummy run, of which there is none on a CPU in eager mode."""
    runner.intermediate_tensors = runner.get_model().make_empty_intermediate_tensors(
        batch_size=runner.max_num_tokens, dtype=runner.dtype, device=runner.device
    )
