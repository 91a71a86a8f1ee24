"""
The residual stream: what runs inside of vLLM.

    client.py         API process: calls to all workers, and what they report
    step_report.py    the message of each step from worker to scheduler
    worker_config.py  the configuration that the API process sends to the workers
    lifeline.py       engine and worker processes: they end with the server, and not before it says so
    scheduler/        EngineCore process
    worker/           worker process
"""
