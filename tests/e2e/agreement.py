"""Compare an engine's answer with the oracle's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.e2e.serving import Server
from tests.reference import Move, ReferenceModel

TOLERANCE = 1e-3
"""
In logprob. Both sides compute in fp32, but in other orders (fused norms, paged attention, batched matmuls), and over 30
layers the stream's rounding differs by about 1e-5 of its norm; 1e-3 is far above that and far below any wrong edit.
"""

VISIBLE = 0.02
"""In logprob: an edit that changes nothing would prove nothing."""


def on_the_wire(moves: Sequence[Move]) -> list[dict[str, Any]]:
    """Write the oracle's moves as interventions in the encoder's units."""
    interventions = []
    for move in moves:
        item: dict[str, Any] = {
            "op": move.op,
            "feature": f"{move.sae}/{move.index}",
            "tokens": move.tokens,
            "special_tokens": move.special,
        }
        if move.op == "scale":
            item["factor"] = move.value
        elif move.op != "ablate":
            item |= {"value": move.value, "unit": "act"}
        interventions.append(item)
    return interventions


def assert_agreement(
    server: Server, oracle: ReferenceModel, prompt: list[int], moves: Sequence[Move], num_new: int = 12
) -> None:
    """Prompt logprobs, and the logprobs and choice of each greedy token, are the oracle's within the tolerance."""
    answer = server.complete(
        prompt,
        on_the_wire(moves),
        max_tokens=num_new,
        prompt_logprobs=0,
        logprobs=0,
        return_token_ids=True,
        ignore_eos=True,
    )
    (choice,) = answer["choices"]
    measured = [
        entry[str(token)]["logprob"] for entry, token in zip(choice["prompt_logprobs"][1:], prompt[1:], strict=True)
    ]
    expected = oracle.prompt_logprobs(prompt, moves)
    assert max_difference(measured, expected) < TOLERANCE
    generated = choice["token_ids"]
    own, best = oracle.generated_logprobs(prompt, generated, moves)
    assert len(generated) == num_new
    assert max_difference(choice["logprobs"]["token_logprobs"], own) < TOLERANCE
    assert max_difference(own, best) < TOLERANCE, "the engine chose a token that the oracle would not"
    if moves:
        plain = oracle.prompt_logprobs(prompt, []) + oracle.generated_logprobs(prompt, generated, [])[0]
        assert max_difference(plain, expected + own) > VISIBLE, "this case cannot tell steering from its absence"


def max_difference(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest absolute difference of two equally long sequences."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
