"""The worker for CPUs; a module of its own, because importing vLLM's CPU worker changes the process it is imported into."""

from vllm.v1.worker.cpu_worker import CPUWorker

from saeclamp_server.engine.worker import SteeringWorker


class SteeringCPUWorker(SteeringWorker, CPUWorker):
    """vLLM's CPU worker, steered."""
