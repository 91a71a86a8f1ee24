"""Events of an answer that takes longer: how far it is, and at the end the answer. Pure: no sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeAlias

import httpx

from saeclamp._exceptions import StreamError, event_error
from saeclamp._requests import parse_answer, parse_json
from saeclamp._responses import AnswerT
from saeclamp._streaming import SSEDecoder
from saeclamp.types import Progress

OnProgress: TypeAlias = Callable[[Progress], None]
"""Callback that is told how far an answer is, about twice a second."""

EVENTS = "text/event-stream"


def wants(progress: OnProgress | None) -> dict[str, str]:
    """Ask for events, if anybody wants to know."""
    return {} if progress is None else {"accept": EVENTS}


def has_events(response: httpx.Response) -> bool:
    """Tell whether it is a stream of events; older servers send their answer as it is."""
    content_type: str = response.headers.get("content-type", "")
    return content_type.partition(";")[0].strip().lower() == EVENTS


class AnswerReader(Generic[AnswerT]):
    """Turns the bytes of one answer's events into progress, and the answer."""

    def __init__(self, answer_type: type[AnswerT], progress: OnProgress | None, request_id: str | None) -> None:
        self.answer: AnswerT | None = None
        """The answer, once it has come."""
        self._answer_type, self._progress, self._request_id = answer_type, progress, request_id
        self._decoder = SSEDecoder()

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `APIStatusError` for an error event, and `APIResponseValidationError`."""
        for event in self._decoder.feed(data):
            body = parse_json(event.data, self._request_id)
            self._take(body if isinstance(body, dict) else {})

    def _take(self, event: dict[str, Any]) -> None:
        if event.get("error") is not None:
            raise event_error(event, self._request_id)
        if event.get("type") == "result":
            self.answer = parse_answer(self._answer_type, event.get("result"), self._request_id)
        elif event.get("type") == "progress" and self._progress is not None:
            self._progress(parse_answer(Progress, event, self._request_id))

    def end(self) -> AnswerT:
        """Return the answer, when the body has ended. Raises `StreamError` where it ended too early."""
        if self.answer is None:
            raise StreamError("The stream ended before its result.", request_id=self._request_id)
        return self.answer
