"""Bytes of tokens that are parts of characters."""

from __future__ import annotations

import re
from typing import Any

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""Form in which tokenizers made by sentencepiece write a single byte."""


def _bytes_of_letters() -> dict[str, int]:
    """Map byte-level tokenizers' letters to bytes: printable Latin-1 to itself, letters from 256 on to all other bytes."""
    # GPT-2's table: without blanks and control characters, and without the soft hyphen (0xAD), which shows as nothing
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + nth): byte for nth, byte in enumerate(hidden)}


_BYTES = _bytes_of_letters()


def bytes_of(tokenizer: Any, token: int) -> tuple[int, ...] | None:
    """Return a token's bytes; None for a tokenizer that writes them in another way."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(piece, str):
        return None
    fallback = _FALLBACK.fullmatch(piece)
    if fallback is not None:
        return (int(fallback[1], 16),)
    return tuple(_BYTES[letter] for letter in piece) if all(letter in _BYTES for letter in piece) else None
