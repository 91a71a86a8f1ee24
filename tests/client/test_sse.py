"""The event decoder against the WHATWG specification: no sockets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeclamp._streaming import Event, SSEDecoder

LINE_ENDS = [b"\n", b"\r\n", b"\r"]

lines = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
events = st.builds(
    Event,
    data=st.lists(lines, min_size=1, max_size=3).map("\n".join),
    event=st.just("message") | lines.filter(bool),
    id=lines.filter(lambda text: "\0" not in text),
)


@st.composite
def wires(draw: st.DrawFn) -> tuple[list[Event], list[bytes]]:
    """Events, and the pieces of bytes in which they may arrive."""
    sent = draw(st.lists(events, max_size=5))
    end = st.sampled_from(LINE_ENDS)
    data = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    for event in sent:
        fields = [f"event: {event.event}", f"id: {event.id}", *(f"data: {line}" for line in event.data.split("\n"))]
        fields.insert(
            draw(st.integers(0, len(fields))), draw(st.sampled_from([": comment", ":", "retry: 10", "other"]))
        )
        data += b"".join(field.encode() + draw(end) for field in fields)
        # A lone "\r" before "\n" would be one line end; the blank line must be a second one.
        data += b"\r\n" if data.endswith(b"\r") else draw(end)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    edges = [0, *cuts, len(data)]
    return sent, [data[start:stop] for start, stop in pairwise(edges)]


def decode(*pieces: bytes) -> list[Event]:
    decoder = SSEDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


@given(wires())
def test_events_are_read_whole_however_they_are_cut_and_ended(wire: tuple[list[Event], list[bytes]]) -> None:
    sent, pieces = wire
    assert decode(*pieces) == sent


@pytest.mark.parametrize("end", LINE_ENDS)
def test_one_byte_at_a_time_gives_the_same_events(end: bytes) -> None:
    data = end.join([b"data: one", b"data: two", b"", b"event: e", "data: é€😀".encode(), b"", b""])
    expected = [Event("one\ntwo"), Event("é€😀", event="e")]
    assert decode(*(bytes([byte]) for byte in data)) == expected
    assert decode(data) == expected


def test_a_chunk_split_inside_a_character_is_read_whole() -> None:
    assert decode(b"data: \xe2", b"\x82", b"\xac\n\n") == [Event("€")]


def test_a_line_end_split_between_chunks_is_one_line_end() -> None:
    assert decode(b"data: a\r", b"\ndata: b\r\n\r", b"\n") == [Event("a\nb")]


def test_an_event_ended_by_a_carriage_return_does_not_wait_for_more() -> None:
    assert decode(b"data: a\r\r") == [Event("a")]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_ascii_line_ends_end_a_line(separator: str) -> None:
    assert decode(f"data: a{separator}b\n\n".encode()) == [Event(f"a{separator}b")]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [Event("a")], id="byte-order-mark"),
        pytest.param(b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [Event("a")], id="byte-order-mark-only-at-the-start"),
        pytest.param(b"data:a\n\n", [Event("a")], id="no-space"),
        pytest.param(b"data:  a\n\n", [Event(" a")], id="one-space-is-dropped"),
        pytest.param(b"data: a:b\n\n", [Event("a:b")], id="colon-in-the-value"),
        pytest.param(b"data\n\n", [Event("")], id="field-without-colon"),
        pytest.param(b"data\ndata\n\n", [Event("\n")], id="two-empty-lines-of-data"),
        pytest.param(b": ping\n\ndata: a\n\n", [Event("a")], id="comment"),
        pytest.param(b"event: e\n\ndata: a\n\n", [Event("a")], id="no-data-no-event"),
        pytest.param(b"event: e\ndata: a\n\ndata: b\n\n", [Event("a", "e"), Event("b")], id="type-lasts-one-event"),
        pytest.param(b"id: 1\ndata: a\n\ndata: b\n\n", [Event("a", id="1"), Event("b", id="1")], id="id-lasts"),
        pytest.param(b"id: 1\nid\ndata: a\n\n", [Event("a")], id="id-is-reset"),
        pytest.param(b"id: 1\nid: 2\0\ndata: a\n\n", [Event("a", id="1")], id="id-with-nul-is-ignored"),
        pytest.param(b"Data: a\n datax: b\n\n", [], id="unknown-fields"),
        pytest.param(b"data: a\n", [], id="event-that-never-ends"),
        pytest.param(b"data: \xff\n\n", [Event("\ufffd")], id="not-utf-8"),
    ],
)
def test_the_specification_holds_in_its_corners(data: bytes, expected: list[Event]) -> None:
    assert decode(data) == expected


@pytest.mark.parametrize(("value", "expected"), [("250", 250), ("-1", None), ("1.5", None), ("²", None), ("", None)])
def test_retry_takes_digits_only(value: str, expected: int | None) -> None:
    decoder = SSEDecoder()
    assert list(decoder.feed(f"retry: {value}\n\n".encode())) == []
    assert decoder.retry_ms == expected
