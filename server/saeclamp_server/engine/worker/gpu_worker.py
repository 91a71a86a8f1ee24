"""Worker process: the worker for NVIDIA GPUs."""

from vllm.v1.worker.gpu_worker import Worker

from saeclamp_server.engine.worker.worker import SteeringWorker


class SteeringGPUWorker(SteeringWorker, Worker):
    """vLLM's GPU worker, steered."""
