"""A load balancer of the tests: each request goes to the next server."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

PER_CONNECTION = {"connection", "transfer-encoding", "content-length", "date", "server", "host"}


@contextmanager
def round_robin(urls: Sequence[str]) -> Iterator[str]:
    """Run it in front of some servers; its URL."""
    turns = itertools.cycle([httpx.Client(base_url=url, timeout=300) for url in urls])

    class Handler(BaseHTTPRequestHandler):
        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in PER_CONNECTION}
            with next(turns).stream(self.command, self.path, content=body, headers=headers) as answer:
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name not in PER_CONNECTION:
                        self.send_header(name, value)
                self.end_headers()
                for part in answer.iter_raw():
                    self.wfile.write(part)

        do_GET = do_POST = do_DELETE = do_PUT = _forward

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
