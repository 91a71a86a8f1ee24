"""Random requests with edits, rules and readouts, and what their answers are held against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from tests.oracles.reference import Compared, Condition, Move, ReferenceModel, When, touched_positions
from tests.support.agreement import assert_choice_agrees, max_difference, on_the_wire, rules_on_the_wire
from tests.support.checkpoints import LEFT_OUT_IDS
from tests.support.differential import NEAR_A_JUMP, TOLERANCE, completed, features, kinds, prompts, scopes
from tests.support.serving import Server

ACT_TOLERANCE = 1e-3
"""Of activations, which are of the order of 1 to 10."""

compared = st.builds(
    lambda feature, bound, above, over: Compared(feature[0], feature[1], bound, above, over),
    features,
    st.sampled_from([-0.5, 0.3, 0.9, 1.7, 3.1]),
    st.booleans(),
    st.sampled_from(["token"] * 4 + ["max", "mean", 1, 4, 64]),
)
conditions = st.recursive(
    compared,
    lambda parts: (
        st.tuples(st.sampled_from(["all", "any"]), st.lists(parts, min_size=1, max_size=3).map(tuple))
        | st.tuples(st.just("not"), st.tuples(parts))
    ),
    max_leaves=4,
)


@st.composite
def rules(draw: st.DrawFn) -> When:
    condition: Condition = draw(conditions)
    index, ((op, value), tokens, special) = draw(st.integers(0, 63)), draw(st.tuples(kinds, scopes, st.booleans()))
    then = Move("high", index, op, 0.0 if op == "ablate" else value, tokens, special)
    return When(condition, (then,), draw(st.booleans()), draw(scopes), draw(st.booleans()))


class Asked(NamedTuple):
    prompt: list[int]
    moves: list[Move]
    rules: list[When]
    num_new: int
    read: str | None


def no_feature_twice(asked: Asked) -> bool:
    moved = [(move.sae, move.index) for move in [*asked.moves, *(move for rule in asked.rules for move in rule.then)]]
    return len(moved) == len(set(moved))


low_moves = st.lists(
    st.builds(lambda index, value: Move("low", index, "clamp", value), st.integers(0, 63), st.floats(-9, 9, width=16)),
    max_size=1,
)


def random_batches(max_new: int, min_size: int, max_size: int) -> st.SearchStrategy[list[Asked]]:
    """Batches of so many requests, with answers of up to `max_new` tokens."""
    asked = st.builds(
        Asked,
        prompts,
        low_moves,
        st.lists(rules(), max_size=3),
        st.integers(1, max_new),
        st.sampled_from([None, "all", "prompt", "generated"]),
    ).filter(no_feature_twice)
    return st.lists(asked, min_size=min_size, max_size=max_size)


def some_batches(num: int) -> settings:
    """Return the settings under which so many random batches are asked for. They are not shrunk: that says little."""
    return settings(
        deadline=None,
        max_examples=num,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        phases=[Phase.explicit, Phase.generate],
    )


def answered(server: Server, asked: Asked) -> dict[str, Any]:
    steering: dict[str, Any] = {}
    if asked.moves:
        steering["interventions"] = on_the_wire(asked.moves)
    if asked.rules:
        steering["rules"] = rules_on_the_wire(asked.rules)
    if asked.read:
        steering["readout"] = {"features": ["low/3", "high/5", "other/7"], "top_k": 4, "tokens": asked.read}
    return completed(server, asked.prompt, steering, max_tokens=asked.num_new, prompt_logprobs=0, logprobs=0)


def check_batch(engine: tuple[Server, ReferenceModel], batch: Sequence[Asked], checked: Counter[str]) -> None:
    """Ask for a batch at once, compare each answer with the oracle's, and count what was compared."""
    server, oracle = engine
    with ThreadPoolExecutor(len(batch)) as pool:
        answers = list(pool.map(lambda asked: answered(server, asked), batch))
    for asked, answer in zip(batch, answers, strict=True):
        (choice,) = answer["choices"]
        assert len(choice["token_ids"]) == asked.num_new
        assert choice["finish_reason"] == "length"
        oracle.to_jump = float("inf")
        try:
            assert_choice_agrees(choice, oracle, asked.prompt, asked.moves, TOLERANCE, asked.rules)
            assert_fired(asked, answer, oracle)
            assert_read(asked, choice, oracle, checked)
        except AssertionError:
            if oracle.to_jump > NEAR_A_JUMP:
                raise
            continue
        checked["rules"] += len(asked.rules)
        checked["held"] += len(answer["steering"]["fired"]) if "steering" in answer else 0


def assert_fired(asked: Asked, answer: dict[str, Any], oracle: ReferenceModel) -> None:
    if not asked.rules:
        return
    ids = [*asked.prompt, *answer["choices"][0]["token_ids"]]
    # the last token is read only for a readout of what is generated
    ids = ids if asked.read in ("all", "generated") else ids[:-1]
    held = oracle.forward(ids, len(asked.prompt), asked.moves, asked.rules).held
    fired = {item["rule"]: (item["token"], item["num_tokens"]) for item in answer["steering"]["fired"]}
    assert fired == {f"rule-{number}": (at[0], len(at)) for number, at in enumerate(held) if at}


def assert_read(asked: Asked, choice: dict[str, Any], oracle: ReferenceModel, checked: Counter[str]) -> None:
    if asked.read is None:
        assert "steering" not in choice
        return
    ids = [*asked.prompt, *choice["token_ids"]]
    acts = oracle.forward(ids, len(asked.prompt), asked.moves, asked.rules, ["low", "high", "other"]).acts
    shown = choice["steering"]
    assert (shown.get("prompt_tokens") is not None) == (asked.read in ("all", "prompt"))
    assert all(token is None or token["text"] is not None for token in shown["tokens"])
    tokens = [*(shown.get("prompt_tokens") or [None] * len(asked.prompt)), *shown["tokens"]]
    assert len(tokens) == len(ids)
    in_scope = touched_positions(len(ids), len(asked.prompt), asked.read)
    expected = [at for at in in_scope if ids[at] not in LEFT_OUT_IDS]
    assert [at for at, token in enumerate(tokens) if token is not None] == expected
    for at in expected:
        assert (tokens[at]["position"], tokens[at]["token_id"]) == (at, ids[at])
        named = {"low/3": acts["low"][at, 3], "high/5": acts["high"][at, 5], "other/7": acts["other"][at, 7]}
        assert tokens[at]["features"].keys() == named.keys()
        assert (
            max_difference([*tokens[at]["features"].values()], [float(act) for act in named.values()]) < ACT_TOLERANCE
        )
        for sae, top in tokens[at]["top"].items():
            strongest = acts[sae][at].topk(4).values
            assert max_difference([item["act"] for item in top], strongest[strongest > 0].tolist()) < ACT_TOLERANCE
            own = acts[sae][at, [item["index"] for item in top]]
            assert torch.allclose(own, torch.tensor([item["act"] for item in top]), atol=ACT_TOLERANCE)
        checked["tokens"] += 1
