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
    "last": ({"last": 3}, (("prompt_end-3", "prompt_end"),)),
    "window": ({"generated": [1, 4]}, (("prompt_end+1", "prompt_end+4"),)),
    "window without an end": ({"generated": [0, None]}, (("prompt_end", None),)),
    "from both ends": (
        {"positions": [1, 2, -1, -2, -30]},
        ((1, 3), ("prompt_end-30", "prompt_end-29"), ("prompt_end-2", "prompt_end")),
    ),
    "positions": ({"positions": [0, 1, 2, 9, 31]}, ((0, 3), (9, 10), (31, 32))),
}
"""As the oracle and as a program says it."""
