"""
Steering on vLLM's other generation endpoints, `/v1/responses` and `/v1/messages`.

Their handlers are left as they are. What they ask of the engine is made to carry the program, and what they answer passes
through here: it gets its receipt, or an error in its place.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saeclamp.types import Receipt, Steering
from saeclamp_server.api.error_envelope import is_anthropic, path_of, written
from saeclamp_server.api.openai.incomplete_answers import is_cut_short
from saeclamp_server.api.openai.receipt_headers import TraceEntry, headers_of
from saeclamp_server.api.openai.requested_model import RequestedModel
from saeclamp_server.api.openai.responder import embed_receipt
from saeclamp_server.api.openai.steered_call import SteeredCall
from saeclamp_server.api.state import state_of
from saeclamp_server.errors import InvalidSteeringError, NotAppliedError
from saeclamp_server.vllm_compat import NOTHING

PATHS = ("/v1/responses", "/v1/messages")
LAST_EVENTS = ("response.completed", "response.incomplete", "message_stop")
"""Types of the event that ends a stream, in which the receipt rides."""
FAILED_EVENTS = ("response.failed", "error")
"""Types of events by which vLLM ends a stream that has no answer."""


@dataclass
class _Carried:
    """A call whose program is attached to every sequence that the engine is asked for meanwhile."""

    call: SteeredCall
    num_sequences: int = 0

    def load(self, params: Any) -> None:
        """Put the program into a sequence's sampling parameters."""
        self.call.attach(params, self.num_sequences)
        self.num_sequences += 1

    async def receipt(self) -> Receipt:
        """Ask what was done. Raises NotAppliedError, also where the engine was asked for nothing."""
        if not self.num_sequences:
            raise NotAppliedError("it was asked for nothing.")
        # how many sequences a handler runs is known only when it has asked for them
        return await replace(self.call, num_sequences=self.num_sequences).receipt()


# vLLM's handlers hand nothing of ours down to the engine, but what they call runs in the request's context
_carried: ContextVar[_Carried | None] = ContextVar("carried", default=None)


def listen(engine: Any) -> None:
    """Attach the program of the carried call to every sequence that the engine is asked for."""
    generate = engine.generate

    def carrying(prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        carried = _carried.get()
        if carried is not None:
            carried.load(params)
        return generate(prompt, params, *args, **kwargs)

    engine.generate = carrying


async def steered(body: Mapping[str, Any], steering: Steering | None, scope: Scope) -> SteeredCall | None:
    """Begin the call of a body that steers; None for one that does not. Raises RequestError."""
    state, path, model = state_of(scope["app"]), path_of(scope), body.get("model")
    asked = await RequestedModel.find(state, model if isinstance(model, str) else None, steering)
    if not asked.steers:
        return None
    if body.get("background"):
        raise InvalidSteeringError("What runs in the background has no receipt, and cannot be steered.", "background")
    entry = TraceEntry(path, Headers(scope=scope).get("x-request-id"), asked.name)
    call = await SteeredCall.begin(state, asked, None, uuid.uuid4().hex, 1, 1, False, entry)
    program = call.resolved.program
    if program.has_token_output or program.can_abort:
        call.failed("it asks for what has no place here")
        call.end()
        what = "rules that abort" if program.can_abort else "readouts and receipts of tokens"
        raise InvalidSteeringError(f"{path} has no place for {what}; use /v1/chat/completions.", "steering")
    return call


async def answer(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, body: Mapping[str, Any], call: SteeredCall
) -> None:
    """Have vLLM answer a steered request, and complete what it answers."""
    carried = _Carried(call)
    assert call.asked is not None, "it was begun from a body"
    plain = {key: value for key, value in body.items() if key != "steering"}
    if call.asked.variant is not None:
        plain["model"] = call.asked.base
    token = _carried.set(carried)
    try:
        await passed_on(app, scope, receive, _AnswerCompleter(send, carried, path_of(scope)).send, plain)
    finally:
        _carried.reset(token)
        call.end()


async def passed_on(app: ASGIApp, scope: Scope, receive: Receive, send: Send, body: Mapping[str, Any]) -> None:
    """Have vLLM answer with another body than was sent."""
    content = json.dumps(body).encode()
    await app(_with_length(scope, content), _once(content, receive), send)


class _AnswerCompleter:
    """Passes an answer on, with its receipt."""

    def __init__(self, send: Send, carried: _Carried, path: str) -> None:
        self._send, self._carried, self._path = send, carried, path
        self._start: Message = {}
        self._is_stream = False
        self._held = b""
        self._is_over = False
        """True once a stream has said how it ends."""

    async def send(self, message: Message) -> None:
        """Take what vLLM sends: hold an answer back until it is whole, and of a stream the last event."""
        if message["type"] == "http.response.start":
            self._start = message
            headers = dict(message.get("headers", ()))
            self._is_stream = bool(headers.get(b"content-type", b"").startswith(b"text/event-stream"))
            if self._is_stream:
                await self._send({**message, "headers": self._headers().raw})
            return
        if message["type"] != "http.response.body":
            return await self._send(message)
        self._held += message.get("body", b"")
        more = message.get("more_body", False)
        if self._is_stream:
            *events, self._held = self._held.split(b"\n\n")
            done = [await self._event(event) for event in events]
            rest = b"" if more else self._held + self._lost()
            await self._send({**message, "body": b"".join(event + b"\n\n" for event in done) + rest})
        elif not more:
            await self._whole()

    def _headers(self, receipt: Receipt | None = None) -> MutableHeaders:
        headers = MutableHeaders(raw=list(self._start["headers"]))
        headers.update(headers_of(self._carried.call.spec, receipt))
        return headers

    async def _whole(self) -> None:
        status, content = self._start["status"], self._held
        headers = MutableHeaders(raw=list(self._start["headers"]))
        if status == 200 and content not in NOTHING:
            try:
                receipt = await self._carried.receipt()
                content = json.dumps(self._complete(json.loads(content), receipt)).encode()
                headers = self._headers(receipt)
            except NotAppliedError as exc:
                status, content = exc.status, json.dumps(exc.body()).encode()
        elif status != 200:
            self._carried.call.failed(_said(content) or f"HTTP {status}")
        headers["content-length"] = str(len(content))
        await self._send({**self._start, "status": status, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": content})

    def _complete(self, body: dict[str, Any], receipt: Receipt) -> dict[str, Any]:
        self._name(body)
        return embed_receipt(body, self._carried.call, receipt)

    async def _event(self, event: bytes) -> bytes:
        # at the beginning of a line: text may hold it too, but JSON has no line breaks
        head, mark, data = (b"\n" + event).rpartition(b"\ndata: ")
        try:
            body = json.loads(data)
        except ValueError:
            return event  # a comment, or the end
        if not isinstance(body, dict):
            return event
        for part in (body, body.get("response"), body.get("message")):
            if isinstance(part, dict):
                self._name(part)
        self._is_over |= body.get("type") in (*LAST_EVENTS, *FAILED_EVENTS)
        cut_short = is_cut_short(body)  # what there is has been sent, so it gets its receipt
        if body.get("type") in FAILED_EVENTS and not cut_short:
            self._carried.call.failed(str(body.get("error") or body.get("type")))
        if body.get("type") in LAST_EVENTS or cut_short:
            try:
                receipt = await self._carried.receipt()
            except NotAppliedError as exc:
                return self._error_event(exc)
            place = body.get("response")
            if isinstance(place, dict):
                body["response"] = self._complete(place, receipt)
            else:
                body = self._complete(body, receipt)
        return (head + mark).removeprefix(b"\n") + json.dumps(body).encode()

    def _lost(self) -> bytes:
        """Write the error of a stream that ends without its last event, and so without its receipt."""
        if self._is_over:
            return b""
        self._carried.call.failed("The answer ended before its receipt.")
        return self._error_event(NotAppliedError("the answer ended before its receipt.")) + b"\n\n"

    def _name(self, body: dict[str, Any]) -> None:
        """Name the model as it was asked for, and note the answer's id."""
        call = self._carried.call
        if call.asked is not None and "model" in body:
            body["model"] = call.asked.name
            if isinstance(body.get("id"), str):
                call.answers_as(body["id"])

    def _error_event(self, exc: NotAppliedError) -> bytes:
        error = exc.body()["error"]
        # an event of Responses has the error's parts itself; by `error` openai-python knows to raise it
        body = (
            written(error, exc.status, self._path)
            if is_anthropic(self._path)
            else {**error, "type": "error", "error": error}
        )
        return b"event: error\ndata: " + json.dumps(body).encode()


def _said(content: bytes) -> str | None:
    """Read the message of an error of vLLM's."""
    try:
        error = json.loads(content)["error"]
    except (ValueError, TypeError, KeyError):
        return None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else None


def _with_length(scope: Scope, content: bytes) -> Scope:
    headers = MutableHeaders(raw=list(scope["headers"]))
    headers["content-length"] = str(len(content))
    return {**scope, "headers": headers.raw}


def _once(content: bytes, receive: Receive) -> Receive:
    """Hand the body over, and then what comes after it, such as the client's going."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    return replay
