"""Bytes of tokens, as byte-level and sentencepiece's tokenizers write them."""

from __future__ import annotations

import pytest

from saeclamp_server.api.openai.token_bytes import bytes_of


class Tokenizer:
    """Of one token."""

    def __init__(self, piece: str | None) -> None:
        self._piece = piece

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self._piece


@pytest.mark.parametrize(
    ("piece", "raw"),
    [
        ("<0xE2>", (0xE2,)),
        ("Ã", (0xC3,)),
        ("Ġâ", (0x20, 0xE2)),
        ("ĢĿ", (0x80, 0x9D)),
        ("ðŁĳ", (0xF0, 0x9F, 0x91)),
        ("▁\ufffd", None),
        (None, None),
    ],
)
def test_a_tokens_bytes_are_read_off_its_piece(piece: str | None, raw: tuple[int, ...] | None) -> None:
    assert bytes_of(Tokenizer(piece), 0) == raw
