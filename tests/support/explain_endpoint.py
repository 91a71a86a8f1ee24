"""
A real HTTP server that speaks OpenAI's chat completions and answers by simple rules, so that the true scores are known.

Asked to explain, it names the word that is marked most often; asked to detect, it finds the texts that hold that word.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.support.tiny_labels import feature

from saeclamp_saes.labelling.table import Example, Explanation, LabelsInfo, LabelTable, Neighbour

WORDS = ("bridge", "cat", "law", "sea", "bread", "moon", "tax", "violin")
DEAD = len(WORDS)
"""A feature that is never active."""


class Failure(NamedTuple):
    """What is sent in place of an answer."""

    status: int = 200
    body: str | None = None
    headers: dict[str, str] = {}  # noqa: RUF012
    content: str | None = None
    """In place of the text of an otherwise good answer"""
    delay: float = 0.0
    is_endless: bool = False
    """Blanks after the headers, until the client goes"""


@dataclass
class Rules:
    """How it answers, and what it saw."""

    delay: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    """For the first requests, one each"""
    never: dict[str, Failure] = field(default_factory=dict)
    """For every request that holds a word"""
    key: str | None = None
    """Without it, 401"""
    said_usage: bool = True
    seen: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of all requests"""
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self) -> list[dict[str, Any]]:
        """What users' messages held."""
        return [json.loads(body["messages"][1]["content"]) for body in self.seen]

    def detected(self, word: str) -> list[list[str]]:
        """Texts of each request to detect a word."""
        return [
            [text["text"] for text in asked["texts"]]
            for asked in self.asked()
            if asked.get("description") == said(word)
        ]

    def shown(self, word: str) -> list[str]:
        """Texts, with marks, of requests to explain the feature of a word."""
        texts = [asked["strong_examples"] + asked["weaker_examples"] for asked in self.asked() if "marks" in asked]
        return [text for some in texts for text in some if f"<< {word}>>" in text]


def said(word: str) -> str:
    return f"the word {word}"


def answer(asked: dict[str, Any]) -> str:
    if "marks" in asked:
        opening, closing = map(re.escape, asked["marks"])
        texts = asked["strong_examples"] + asked["weaker_examples"]
        marked = Counter(word.strip() for text in texts for word in re.findall(f"{opening}(.*?){closing}", text))
        return json.dumps({"explanation": said(marked.most_common(1)[0][0])})
    word = asked["description"].removeprefix("the word ")
    return json.dumps({"matches": [text["number"] for text in asked["texts"] if f" {word}" in text["text"]]})


@contextmanager
def endpoint(rules: Rules) -> Iterator[str]:
    """Serve on a free port; yields the base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with rules.lock:
                rules.seen.append(body)
                rules.times.append(time.monotonic())
                rules.at_once += 1
                rules.most_at_once = max(rules.most_at_once, rules.at_once)
                failure = rules.failures.pop(0) if rules.failures else Failure()
            try:
                self._answer(body, failure)
            except (BrokenPipeError, ConnectionResetError):  # the client had enough
                pass
            finally:
                with rules.lock:
                    rules.at_once -= 1

        def _answer(self, body: dict[str, Any], failure: Failure) -> None:
            text = body["messages"][1]["content"]
            failure = next((always for word, always in rules.never.items() if word in text), failure)
            time.sleep(rules.delay + failure.delay)
            if self.path != "/v1/chat/completions":
                return self._send(Failure(404, '{"error": {"message": "no such address"}}'), "")
            if rules.key and self.headers.get("authorization") != f"Bearer {rules.key}":
                return self._send(Failure(401, '{"error": {"message": "wrong key"}}'), "")
            content = failure.content if failure.content is not None else answer(json.loads(text))
            value: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": content}}]}
            if rules.said_usage:
                value["usage"] = {"prompt_tokens": 100, "completion_tokens": 7}
            return self._send(failure, json.dumps(value))

        def _send(self, failure: Failure, good: str) -> None:
            data = (good if failure.body is None else failure.body).encode()
            self.send_response(failure.status)
            for name, value in {"content-type": "application/json", **failure.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(10**12 if failure.is_endless else len(data)))
            self.end_headers()
            while failure.is_endless:
                self.wfile.write(b" " * 65536)
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def examples(word: str, number: int) -> tuple[Example, ...]:
    """
    Ten of the strongest quantile and two of each other one, all in documents of their own.

    The feature of "cat" is also active on another word, in some of its examples; and every third example of every feature
    holds a word that begins with "law".
    """
    found = []
    for place, quantile in enumerate([9] * 10 + [quantile for quantile in range(8, -1, -1) for _ in range(2)]):
        own = "dog" if word == "cat" and place % 4 == 1 else word
        aside = " lawn" if place % 3 == 1 else " owl"
        tokens = (" It", " says", f" {number}x{place}", aside, " and", f" {own}", " today", ".")
        before = 0.4 * (quantile + 1) if place % 3 == 0 else 0.0
        acts = (0.0, 0.0, 0.0, 0.0, before, quantile + 1.0, 0.0, 0.0)
        found.append(Example(quantile, tokens, acts, 5, quantile + 1.0, 1000 * number + place))
    return tuple(found)


def inactive(number: int) -> tuple[Example, ...]:
    """Pieces without the feature, in documents of their own; every third one holds a word that begins with "law"."""
    found = []
    for place in range(14):
        aside = " lawn" if place % 3 == 1 else " owl"
        tokens = (" We", " heard", f" {number}y{place}", aside, " and", " rain", ".")
        found.append(Example(-1, tokens, (0.0,) * 7, 3, 0.0, 1000 * number + 500 + place))
    return tuple(found)


def labels(**explanations: Explanation) -> LabelTable:
    """A feature for each of the words, and one that is never active."""
    features = [
        feature(
            number,
            num_active=50,
            density=0.001 * number,
            examples=examples(word, number),
            inactive=inactive(number),
            output_score=number / 10,
            neighbours=(Neighbour((number + 1) % len(WORDS), 0.9),),
        )
        for number, word in enumerate(WORDS)
    ]
    features.append(feature(DEAD, num_active=0, density=0.0, examples=(), inactive=inactive(DEAD)))
    info = LabelsInfo("mine", "0" * 64, "tiny", {}, {}, 5000, {}, (), {}, "2026-11-23T00:00:00+00:00")
    made = LabelTable.of(info, features)
    return made.with_explanations({WORDS.index(word): said for word, said in explanations.items()})
