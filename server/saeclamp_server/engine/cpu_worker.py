"""The worker for CPUs; a module of its own, because importing vLLM's CPU worker changes the process it is imported into."""

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from saeclamp_server.engine.seeds import spare_seeds
from saeclamp_server.engine.worker import SteeringWorker


class SteeringCPUWorker(SteeringWorker, CPUWorker):
    """vLLM's CPU worker, steered."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load and hook the model, and keep the engine alive when a request with a seed is computed in parts."""
        super().load_model(*args, **kwargs)
        spare_seeds(self.model_runner)
