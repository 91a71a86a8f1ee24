"""A port of its own for `/metrics`, which needs no key: for those who watch servers, behind whatever shields it."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server

from saeclamp_server.model_info import StartupError


def serve_metrics(flag: str, host: str, ports: Iterable[int]) -> WSGIServer:
    """
    Serve this process's metrics, in a thread, on the first of the ports that is free.

    flag: what the user calls the port
    Raises StartupError where none is.
    """
    # later than the others: importing vLLM is for a process that is set up
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    tried = []
    for port in ports:
        try:
            server, _ = start_http_server(port, addr=host, registry=get_prometheus_registry())
        except OSError as exc:
            tried.append(f"{port} cannot be listened on: {exc.strerror}")
            if exc.errno != errno.EADDRINUSE:
                break
        else:
            return server
    raise StartupError(f"{flag}: {tried[-1]}.")
