"""
The steering that runs inside of vLLM, in three processes.

    client.py         API process: calls to all workers, and their steering reports
    step_report.py    the message of each step from worker to scheduler
    worker_config.py  the configuration that the API process sends to the workers
    lifeline.py       engine and worker processes: they end with the server, and not before it says so
    scheduler/        EngineCore process: vLLM's scheduler, with steering's prefix cache, output gate and failures
    worker/           worker process: vLLM's worker and V1 model runner, with the SAEs and the edits
"""
