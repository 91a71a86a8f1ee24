"""A port of its own for `/metrics`, which needs no key: for those who watch servers, behind whatever shields it."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from saeclamp_server.model_info import StartupError
from saeclamp_server.startup.preflight import cannot_serve_metrics


def serve_metrics(flag: str, host: str | None, ports: Iterable[int]) -> WSGIServer:
    """
    Serve this process's metrics, in a thread, on the first of the ports that is free; any other path is a 404.

    flag: what the user calls the port
    Raises StartupError where none is.
    """
    # later than the others: importing vLLM is for a process that is set up
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    metrics = make_wsgi_app(get_prometheus_registry())

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/metrics is all that there is on this port.\n"]

    tried = []
    for port in ports:
        try:
            server = make_server(
                host or "", port, app, _IPv6Server if host and ":" in host else _Server, _SilentHandler
            )
        except OSError as exc:
            tried.append(cannot_serve_metrics(flag, port, exc))
            if exc.errno != errno.EADDRINUSE:
                break
        else:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return server
    raise StartupError(tried[-1])


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _IPv6Server(_Server):
    address_family = socket.AF_INET6


class _SilentHandler(WSGIRequestHandler):
    timeout = 10.0
    """Seconds that a connection may say nothing: nobody but a thread waits for it."""

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: it is asked every few seconds."""
