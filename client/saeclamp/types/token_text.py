"""Characters whose bytes are spread over several tokens, as emoji's and many scripts' are, put together again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

PART = "\ufffd"
"""Character that decoding a part of a character gives."""


class ShownToken(Protocol):
    """A token's text, and its bytes where it is no whole text."""

    @property
    def text(self) -> str | None:
        """Text of the token alone."""

    @property
    def bytes(self) -> tuple[int, ...] | None:
        """Bytes of a token that is no whole text."""


class Piece(NamedTuple):
    """Tokens that are shown as one, and their text."""

    start: int
    end: int
    """Number of the token behind the last of them."""
    text: str


def pieces(tokens: Sequence[ShownToken | str]) -> Iterator[Piece]:
    """
    Cut tokens into pieces of whole text: most are a token each.

    Where bytes are not known, as of texts alone, neighbouring tokens of parts of characters are one piece.
    """
    start, joined, is_known = 0, b"", True
    for at, token in enumerate(tokens):
        text = token if isinstance(token, str) else token.text or ""
        raw = None if isinstance(token, str) else token.bytes
        # where bytes are not known, what decodes to nothing but marks is a part of a character
        if raw is None and (not text or text.strip(PART)):
            if start < at:
                yield Piece(start, at, _decoded(joined, is_known))
            yield Piece(at, at + 1, text)
            start, joined, is_known = at + 1, b"", True
        elif raw is None:
            is_known = False
        else:
            joined += bytes(raw)
            if is_known and not _is_cut(joined):
                yield Piece(start, at + 1, _decoded(joined, is_known))
                start, joined = at + 1, b""
    if start < len(tokens):
        yield Piece(start, len(tokens), _decoded(joined, is_known))


def _decoded(joined: bytes, is_known: bool) -> str:
    return joined.decode(errors="replace") if is_known else PART


def _is_cut(joined: bytes) -> bool:
    """Tell whether more bytes can make it whole."""
    try:
        joined.decode()
    except UnicodeDecodeError as exc:
        return exc.reason == "unexpected end of data"
    return False
