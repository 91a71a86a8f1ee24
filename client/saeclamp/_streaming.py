"""
Server-sent events, as the WHATWG specification has them, and streams of typed chunks on top.

bytes -> SSEDecoder -> Event -> ChunkReader -> chunk. Everything up to the chunk is pure and shared; the clients'
streams only fetch bytes and close the response.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

from saeclamp._exceptions import NotSteeredError, StreamError, stream_error
from saeclamp._requests import check_receipt, parse_answer, parse_json
from saeclamp._responses import ChunkT
from saeclamp.types import Receipt

# bytes.splitlines would do for bytes, but would hide a "\r\n" that two reads cut in half.
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Event:
    """One dispatched event."""

    data: str
    event: str = "message"
    id: str = ""
    """The last id seen on the stream, from this event or an earlier one."""


class SSEDecoder:
    """Turns bytes, cut anywhere, into events. Lines are split as bytes, so only ASCII line ends count."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        """Reconnection time that the server asked for, in milliseconds."""
        self._partial = bytearray()
        self._after_cr = False
        self._first_line = True
        self._data: list[str] = []
        self._event = ""
        self._id = ""

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take the next bytes; yield the events that they complete. An event without its blank line is not one."""
        if not data:
            return
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        *lines, rest = _LINE_END.split(data)
        for line in lines:
            event = self._take_line(bytes(self._partial) + line)
            self._partial.clear()
            if event is not None:
                yield event
        self._partial += rest

    def _take_line(self, line: bytes) -> Event | None:
        if self._first_line:
            line = line.removeprefix(_BOM)
            self._first_line = False
        if not line:
            return self._dispatch()
        name, _, value = line.decode("utf-8", errors="replace").partition(":")
        self._take_field(name, value.removeprefix(" "))
        return None

    def _take_field(self, name: str, value: str) -> None:
        # A comment is a line that starts with a colon: its name is empty, and falls through like any unknown one.
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:  # the specification ignores such an id
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value)

    def _dispatch(self) -> Event | None:
        data, event = self._data, self._event or "message"
        self._data, self._event = [], ""
        return Event("\n".join(data), event, self._id) if data else None


class ChunkReader(Generic[ChunkT]):
    """Turns the bytes of one answer into chunks, keeps what the stream says of itself, and knows when it is over."""

    def __init__(self, chunk_type: type[ChunkT], *, expects_receipt: bool, request_id: str | None) -> None:
        self.done = False
        self.receipt: Receipt | None = None
        self.text: list[str] = []
        self.request_id = request_id
        self._chunk_type = chunk_type
        self._expects_receipt = expects_receipt
        self._decoder = SSEDecoder()
        self._events: deque[Event] = deque()

    def feed(self, data: bytes | None) -> None:
        """Take the next bytes, or None where the body ended, which before `[DONE]` is a `StreamError`."""
        if data is None:
            raise StreamError("The stream ended before [DONE]: the text is cut off.", request_id=self.request_id)
        self._events.extend(self._decoder.feed(data))

    def next_chunk(self) -> ChunkT | None:
        """
        Return the next chunk of what was fed, or None: then the stream is `done`, or needs to be fed.

        Raises `StreamError`, `APIResponseValidationError`, and at `[DONE]` `NotSteeredError`.
        """
        while self._events and not self.done:
            event = self._events.popleft()
            if event.data == "[DONE]":
                self.done = True
                check_receipt(self.receipt, self._expects_receipt, self.request_id)
            elif event.event in ("message", "error"):
                return self._parse(event)
        return None

    def _parse(self, event: Event) -> ChunkT:
        body = parse_json(event.data, self.request_id)
        if event.event == "error" or (isinstance(body, dict) and body.get("error") is not None):
            raise stream_error(body, self.request_id)
        chunk = parse_answer(self._chunk_type, body, self.request_id)
        self.receipt = chunk.steering or self.receipt
        self.text.append(chunk.text)
        return chunk


class StreamState(Generic[ChunkT]):
    """The state of a stream's answer so far."""

    _reader: ChunkReader[ChunkT]

    @property
    def steering(self) -> Receipt | None:
        """The receipt, once the stream has ended."""
        return self._reader.receipt

    @property
    def text(self) -> str:
        """The first choice's text, as far as it has been read."""
        return "".join(self._reader.text)

    @property
    def request_id(self) -> str | None:
        """The `x-request-id` of the HTTP response."""
        return self._reader.request_id


class SteeredState(StreamState[ChunkT]):
    """The state of an answer that is to be steered."""

    @property
    def steering(self) -> Receipt:
        """The receipt. Raises `NotSteeredError` before the stream has been read to its end."""
        if self._reader.receipt is None:
            raise NotSteeredError(
                "The receipt comes with the last chunk: read the stream to its end.", self._reader.request_id
            )
        return self._reader.receipt
