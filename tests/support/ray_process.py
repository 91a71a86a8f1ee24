"""
Ray Serve in a process of its own: `python -m tests.support.ray_process PORT`.

Each line of its standard input is a deployment, the JSON of `saeclamp_server.ray.Settings`; when it runs, it says so. It
ends with its input.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    import ray
    from ray import serve

    from saeclamp_server.ray import Settings, app

    ray.init(num_cpus=8, include_dashboard=False, object_store_memory=100 << 20)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    for line in sys.stdin:
        serve.run(app(Settings(**json.loads(line))))
        print("running", flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
