"""Token ranges of every kind."""

from __future__ import annotations

from tests.oracles.reference import Tokens

from saeclamp_server.steering.token_ranges import ALL, GENERATED, PROMPT, TokenRanges

SCOPES: dict[str, tuple[Tokens, TokenRanges]] = {
    "all": ("all", ALL),
    "prompt": ("prompt", PROMPT),
    "generated": ("generated", GENERATED),
    "first": ({"first": 7}, ((0, 7),)),
    "after": ({"after": 12}, ((12, None),)),
    "positions": ({"positions": [0, 1, 2, 9, 31]}, ((0, 3), (9, 10), (31, 32))),
}
"""As the oracle and as a program says it."""
