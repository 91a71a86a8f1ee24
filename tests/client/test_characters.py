"""A character whose bytes are spread over several tokens shows as one."""

from __future__ import annotations

import pytest

from saeclamp.types import InspectedFeature, InspectedToken, Inspection
from saeclamp.types.token_text import PART, pieces

WAVE = tuple("👋".encode())


def token(text: str, *raw: int) -> InspectedToken:
    return InspectedToken(position=0, id=0, text=text, bytes=raw or None)


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        pytest.param([token("a"), token(" b")], [(0, 1, "a"), (1, 2, " b")], id="whole-texts"),
        pytest.param(
            [token("a"), token(PART, *WAVE[:2]), token(PART, WAVE[2]), token(PART, WAVE[3]), token("b")],
            [(0, 1, "a"), (1, 4, "👋"), (4, 5, "b")],
            id="an-emoji-of-three-tokens",
        ),
        pytest.param(
            [token(" " + PART, 32, 0xC3), token(PART, 0xA9), token(PART, 0xC3), token(PART + "t", 0xA9, 116)],
            [(0, 2, " é"), (2, 4, "ét")],
            id="letters-beside-each-other",
        ),
        pytest.param(
            [token(PART, 0xC3), token("a")], [(0, 1, PART), (1, 2, "a")], id="a-character-that-is-never-whole"
        ),
        pytest.param([token(PART, 0xA9), token("a")], [(0, 1, PART), (1, 2, "a")], id="an-end-without-a-beginning"),
        pytest.param([token(PART, 0xC3)], [(0, 1, PART)], id="cut-at-the-end"),
        pytest.param(["a", PART, PART, "b", PART], [(0, 1, "a"), (1, 3, PART), (3, 4, "b"), (4, 5, PART)], id="texts"),
        pytest.param([token(""), token("a")], [(0, 1, ""), (1, 2, "a")], id="a-token-without-text"),
        pytest.param([], [], id="none"),
    ],
)
def test_tokens_are_cut_into_pieces_of_whole_text(
    tokens: list[InspectedToken | str], shown: list[tuple[int, int, str]]
) -> None:
    assert [tuple(piece) for piece in pieces(tokens)] == shown


def test_a_heat_map_shows_a_character_of_several_tokens_as_one_as_warm_as_its_warmest() -> None:
    feature = InspectedFeature(
        feature="b/1", sae="b", index=1, max=4, mean=1, frequency=0.5, acts=(0.0, 1.0, 4.0), position=2
    )
    tokens = (token("a"), token(PART, *WAVE[:2]), token(PART, *WAVE[2:]))
    drawn = Inspection(tokens=tokens, features=(feature,), aggregate="max", num_counted=3)._repr_html_()
    assert drawn is not None
    assert PART not in drawn
    assert drawn.count("👋") == 1
    assert '1.00)" title="4">👋</span>' in drawn
