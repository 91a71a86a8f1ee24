"""A real HTTP server on a free port that does what a test tells it, and remembers what it was sent."""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[["Handler"], None]
"""Answers one request."""


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    json: Any
    content: bytes = b""


class Handler(BaseHTTPRequestHandler):
    """Reads a request and plays the next act."""

    protocol_version = "HTTP/1.1"
    script: ScriptedServer

    def do_GET(self) -> None:
        self._play()

    def do_POST(self) -> None:
        self._play()

    def do_DELETE(self) -> None:
        self._play()

    def _play(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        is_json = body and headers.get("content-type") != "application/octet-stream"
        self.script.seen.append(Seen(self.command, self.path, headers, json.loads(body) if is_json else None, body))
        act = self.script.acts.popleft() if self.script.acts else reply({"error": "nothing is scripted"}, status=501)
        act(self)

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@dataclass
class ScriptedServer:
    """`acts` are played one a request; `seen` are the requests."""

    url: str = ""
    acts: deque[Act] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)
    """Set when `stream_for_ever` notices that the client has gone."""
    stopping: threading.Event = field(default_factory=threading.Event)

    def will(self, *acts: Act) -> None:
        self.acts.extend(acts)

    def paths(self) -> list[str]:
        return [seen.path for seen in self.seen]

    def run(self) -> Callable[[], None]:
        """Start; returns what stops it."""
        handler = type("BoundHandler", (Handler,), {"script": self})
        http = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()

        def stop() -> None:
            self.stopping.set()
            http.shutdown()
            http.server_close()
            thread.join()

        return stop


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the script."""


def reply(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Act:
    """A whole answer: bytes as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def act(handler: Handler) -> None:
        handler.head(status, {"content-length": str(len(data)), **(headers or {})})
        handler.wfile.write(data)

    return act


def stream(pieces: Iterable[bytes], *, cut: bool = False, headers: dict[str, str] | None = None) -> Act:
    """Pieces one by one; `cut` breaks the connection where the body should end."""
    pieces = list(pieces)

    def act(handler: Handler) -> None:
        handler.head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked", **(headers or {})})
        for piece in pieces:
            handler.chunk(piece)
        if cut:
            _hang_up(handler)
        else:
            handler.chunk(b"")

    return act


def stream_for_ever(piece: bytes) -> Act:
    """The same piece until the client goes away."""

    def act(handler: Handler) -> None:
        handler.head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
        try:
            while not handler.script.stopping.wait(0.005):
                handler.chunk(piece)
        except OSError:
            handler.script.hung_up.set()
        handler.close_connection = True

    return act


def stall(*pieces: bytes) -> Act:
    """A stream that says nothing after `pieces`; without any, not even a status line."""

    def act(handler: Handler) -> None:
        if pieces:
            handler.head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
            for piece in pieces:
                handler.chunk(piece)
        handler.script.stopping.wait(10)
        handler.close_connection = True

    return act


def hang_up(handler: Handler) -> None:
    """No answer at all."""
    _hang_up(handler)


def _hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


RECEIPT: dict[str, Any] = {
    "applied": True,
    "spec": "sha256:1",
    "model": "sha256:2",
    "sae": {"bundled": "sha256:3"},
    "interventions": [
        {
            "feature": "bundled/914",
            "sae": "bundled",
            "index": 914,
            "layer": 23,
            "op": "clamp",
            "value": 0.74,
            "unit": "max_act",
            "value_act": 170.2,
            "tokens": {"prompt": 23, "generated": 96},
            "act_before": {"mean": 0.4, "max": 3.1},
            "dose": {"mean": 0.31, "max": 0.52, "unit": "resid_norm"},
        }
    ],
    "warnings": [],
}


def chat_answer(text: str = "hello", **extra: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    return {**_frame("chat.completion"), "choices": [choice], "usage": usage, **extra}


def chat_chunk(text: str = "hello", **extra: Any) -> dict[str, Any]:
    return {**_frame("chat.completion.chunk"), "choices": [{"index": 0, "delta": {"content": text}}], **extra}


def text_answer(text: str = "hello", **extra: Any) -> dict[str, Any]:
    return {**_frame("text_completion"), "choices": [{"index": 0, "text": text, "finish_reason": "stop"}], **extra}


def _frame(kind: str) -> dict[str, Any]:
    return {"id": "cmpl-1", "object": kind, "created": 1, "model": "m"}


def sse(body: Any) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"

MODELS = {
    "object": "list",
    "data": [
        {"id": "gate", "object": "model", "created": 1, "owned_by": "saeclamp", "root": "base", "parent": "base"},
        {"id": "base", "object": "model", "created": 1, "owned_by": "saeclamp", "root": "base", "parent": None},
    ],
}
