"""A server whose answers are known beforehand, and that fails when it is told to. What it says of a clamp is made up."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.checkpoints import make_sae
from tests.support.scripted_server import RECEIPT, chat_answer, reply, text_answer

from saeclamp_saes import find_sae, open_entry
from saeclamp_saes.cli.log_handler import set_up_log
from saeclamp_server.cli.args import parse_args

PROMPT_IDS = [5, 6, 7]
PLAIN, BRIDGED, BROKEN = 1000, 1200, 3000
"""Ids of the answers' tokens, which are also a thousand times their negative log-likelihood, in nats."""

Fault = Callable[["Asked"], Callable[[Any], None] | None]
"""What to do instead of answering, if anything."""


@dataclass(frozen=True)
class Asked:
    """A request."""

    number: int
    """Of those with the same path, from 0."""
    path: str
    body: Any

    @property
    def act(self) -> float:
        """What the feature is clamped to; 0 if the request is unsteered."""
        steering = self.body.get("steering")
        return steering["interventions"][0]["value"] if steering else 0.0

    @property
    def is_check(self) -> bool:
        """Whether it only finds out, with a token, what the server takes."""
        return "steering" in self.body and self.body["max_tokens"] == 1


@dataclass
class Stub:
    """A server, and what it was asked."""

    sae_sha256: str
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    fault: Fault = lambda asked: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def acts(self) -> list[float]:
        """What answers were asked for: one a request."""
        return [asked.act for asked in self.answers() if "messages" in asked.body or "steering" in asked.body]

    def answers(self) -> list[Asked]:
        """Requests but for those that only check."""
        return [asked for asked in self.asked if not asked.is_check]

    def note(self, path: str, body: Any) -> Asked:
        with self.lock:
            asked = Asked(sum(other.path == path for other in self.asked), path, body)
            self.asked.append(asked)
        return asked


def said(prompt: int, act: float) -> tuple[str, list[int]]:
    """
    The answer to a prompt: 0 and 1 are about a bridge from 10 on, 2 and 3 from 20 on, ...; above 80 all are.

    returns: text; ids of its tokens
    """
    if act > 80:
        return "bridge " * 6, [BROKEN] * 6
    if act >= 10 * (prompt // 2 + 1):
        return f"number {prompt} is a fine bridge", [BRIDGED] * 6
    return f"number {prompt} is nothing much", [PLAIN] * 5


@contextmanager
def stub(sae_sha256: str) -> Iterator[Stub]:
    """Serve until the block ends. Prompts are numbers: '0', '1', ..."""
    state = Stub(sae_sha256)
    http = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"stub": state}))
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: Stub

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        bodies: dict[str, Any] = {
            "/v1/models": {
                "object": "list",
                "data": [{"id": "tiny", "object": "model", "created": 1, "owned_by": "x"}],
            },
            "/version": {"version": "0.32.0"},
        }
        reply(bodies.get(self.path, {}))(self)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        asked = self.stub.note(self.path, body)
        act = self.stub.fault(asked) or reply(_answer(asked, self.stub.sae_sha256))
        act(self)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _answer(asked: Asked, sae_sha256: str) -> dict[str, Any]:
    body = asked.body
    if "prompt_logprobs" in body:
        logprobs = [None] + [{str(token): {"logprob": -token / 1000}} for token in body["prompt"][1:]]
        answer = text_answer("x")
        answer["choices"][0]["prompt_logprobs"] = logprobs
        return answer
    prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
    text, ids = said(int(prompt), asked.act)
    receipt = {**RECEIPT, "sae": {"mine": f"sha256:{sae_sha256}"}} if "steering" in body else None
    if "messages" in body:
        answer = chat_answer(text, prompt_token_ids=PROMPT_IDS, steering=receipt)
    else:
        answer = text_answer(text, steering=receipt)
        answer["choices"][0]["prompt_token_ids"] = PROMPT_IDS
    answer["choices"][0]["token_ids"] = ids
    return answer


BOOK = """\
notes: Mine.
features:
- {index: 3, name: bridge, description: Bridges., max_act: 100}
- {index: 5, name: food, max_act: 50, clamp: [0.5, 0.9]}
- {index: 6, name: law}
"""
STRENGTHS = ("--strengths", "0.05,0.15,0.25,0.9")
NUM_PROMPTS = 8
"""As few as tell whether a feature steers, with the default strengths."""


def write_sae(parent: Path) -> Path:
    """Write an SAE with a feature book, and the numbered prompts beside its folder, which is returned."""
    path = make_sae(parent / "mine", layer=2, d_in=16, d_sae=24)
    (path / "features.yaml").write_text(BOOK)
    (parent / "prompts.txt").write_text("".join(f"{number}\n" for number in range(NUM_PROMPTS)))
    return path


@contextmanager
def serving(folder: Path) -> Iterator[Stub]:
    """Serve an SAE's folder until the block ends."""
    with stub(open_entry(find_sae(str(folder))).sha256) as running:
        yield running


def words(server: Stub, folder: Path, *more: str, features: str = "bridge") -> list[str]:
    prompts = ["--prompts", str(folder.parent / "prompts.txt")]
    given = [*STRENGTHS, "--no-similarity", *more]
    if "--concept" not in given:
        given += ["--concept", "bridge"]
    return ["calibrate", str(folder), "--features", features, "--url", server.url, *prompts, *given]


def run(arguments: list[str], **how: float) -> int:
    parsed = parse_args(arguments)
    assert isinstance(parsed, argparse.Namespace)
    set_up_log()  # as `main` does
    status: int = parsed.run(parsed, **how)
    return status


def curve_of(folder: Path, index: int = 3) -> dict[str, Any]:
    curve: dict[str, Any] = json.loads((folder / "calibration.json").read_text())["features"][str(index)]
    return curve
