"""Compare an engine's answer with the oracle's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.oracles.reference import Compared, Condition, Move, ReferenceModel, When
from tests.support.serving import Server

TOLERANCE = 1e-3
"""
In logprob. Both sides compute in fp32, but in other orders (fused norms, paged attention, batched matmuls), and over 30
layers the stream's rounding differs by about 1e-5 of its norm; 1e-3 is far above that and far below any wrong edit.
"""

VISIBLE = 0.02
"""In logprob: an edit that changes nothing would prove nothing."""


def on_the_wire(moves: Sequence[Move]) -> list[dict[str, Any]]:
    """Write the oracle's moves as interventions in the encoder's units; vectors are called `vector:NAME` there."""
    interventions = []
    for move in moves:
        kind, _, name = move.sae.rpartition(":")
        item: dict[str, Any] = {
            "op": move.op,
            **({"vector": name} if kind == "vector" else {"feature": f"{move.sae}/{move.index}"}),
            "tokens": move.tokens,
            "special_tokens": move.special,
        }
        if move.op == "scale":
            item["factor"] = move.value
        elif move.op != "ablate":
            item |= {"value": move.value, "unit": "act"}
        interventions.append(item)
    return interventions


def rules_on_the_wire(rules: Sequence[When]) -> list[dict[str, Any]]:
    """Write the oracle's rules in the encoder's units; one without moves aborts."""
    return [
        {
            "name": f"rule-{number}",
            "when": _condition(rule.condition),
            "scope": "rest_of_request" if rule.lasting else "token",
            "then": on_the_wire(rule.then) or "abort",
            "tokens": rule.tokens,
            "special_tokens": rule.special,
        }
        for number, rule in enumerate(rules)
    ]


def _condition(condition: Condition) -> dict[str, Any]:
    if isinstance(condition, Compared):
        said: dict[str, Any] = {"above" if condition.above else "below": condition.bound, "unit": "act"}
        if condition.over != "token":
            said["over"] = {"last": condition.over} if isinstance(condition.over, int) else condition.over
        if condition.sae.startswith("vector:"):
            return {"vector": condition.sae.removeprefix("vector:"), **said}
        return {"feature": f"{condition.sae}/{condition.index}", **said}
    kind, parts = condition
    return {kind: _condition(parts[0]) if kind == "not" else [_condition(part) for part in parts]}


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
    generated = choice["token_ids"]
    assert len(generated) == num_new
    steered = assert_choice_agrees(choice, oracle, prompt, moves)
    if moves:
        plain = oracle.request_logprobs(prompt, generated, []).tokens
        assert max_difference(plain, steered) > VISIBLE, "this case cannot tell steering from its absence"


def assert_choice_agrees(
    choice: Mapping[str, Any],
    oracle: ReferenceModel,
    prompt: Sequence[int],
    moves: Sequence[Move],
    tolerance: float = TOLERANCE,
    rules: Sequence[When] = (),
) -> list[float]:
    """
    Compare a greedy choice, asked for with `logprobs`, `return_token_ids` and maybe `prompt_logprobs`.

    returns: the oracle's logprobs of the prompt's tokens and the generated ones
    """
    expected = oracle.request_logprobs(prompt, choice["token_ids"], moves, rules)
    if choice["prompt_logprobs"] is not None:
        entries = zip(choice["prompt_logprobs"][1:], prompt[1:], strict=True)
        measured = [entry[str(token)]["logprob"] for entry, token in entries]
        assert max_difference(measured, expected.prompt) < tolerance
    own, best = expected.generated, expected.likeliest
    assert max_difference(choice["logprobs"]["token_logprobs"], own) < tolerance
    assert max_difference(own, best) < tolerance, "the engine chose a token that the oracle would not"
    return expected.tokens


def max_difference(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest absolute difference of two equally long sequences."""
    return max((abs(a - b) for a, b in zip(one, other, strict=True)), default=0.0)
