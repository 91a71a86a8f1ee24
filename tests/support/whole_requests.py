"""Requests with edits, a rule, a readout and an itemised receipt, and what their answers are held against."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from tests.oracles.reference import Compared, Move, ReferenceModel, When
from tests.support.agreement import on_the_wire, rules_on_the_wire
from tests.support.checkpoints import SPECIAL_IDS
from tests.support.differential import completed, streamed_choices
from tests.support.serving import Server

REPEATING = [1, *([100, 137, 174, 211, 248] * 8)]


class Case(NamedTuple):
    prompt: list[int]
    moves: list[Move]
    rule: When

    @classmethod
    def number(cls, number: int) -> Case:
        return cls(
            [*REPEATING, 300 + number],
            [Move("low", 3 + number, "clamp", 6.0), Move("high", 9, "add", 2.0, "generated")],
            # what is read in the first layer and in the last acts on the last
            When(
                Compared("low" if number < 2 else "high", 7, 0.4),
                (Move("other", 5, "add", 3.0),),
                lasting=number % 2 == 1,
            ),
        )

    def ask(self, server: Server, num_new: int) -> dict[str, Any]:
        steering: dict[str, Any] = {
            "interventions": on_the_wire(self.moves),
            "rules": rules_on_the_wire([self.rule]),
            "readout": {"features": ["low/3", "high/7"], "top_k": 2},
            "receipt": "tokens",
        }
        return completed(server, self.prompt, steering, max_tokens=num_new)


def assert_everything(case: Case, answer: dict[str, Any], oracle: ReferenceModel) -> None:
    prompt = case.prompt
    (choice,) = answer["choices"]
    ids = [*prompt, *choice["token_ids"]]
    shown = oracle.forward(ids, len(prompt), case.moves, [case.rule])
    for token in choice["steering"]["tokens"]:
        if token is not None:
            low, high = (float(shown.acts[sae][token["position"], index]) for sae, index in (("low", 3), ("high", 7)))
            assert list(token["features"].values()) == pytest.approx([low, high], abs=1e-3)
            assert token["token_id"] == ids[token["position"]]
    assert_itemised(case, answer, oracle)
    (held,) = shown.held
    assert [(item["token"], item["num_tokens"]) for item in answer["steering"]["fired"]] == (
        [(held[0], len(held))] if held else []
    )
    generated = [token for token in choice["token_ids"] if token not in SPECIAL_IDS]
    assert answer["steering"]["interventions"][1]["tokens"] == {"prompt": 0, "generated": len(generated), "sinks": 0}


def assert_itemised(case: Case, answer: dict[str, Any], oracle: ReferenceModel) -> None:
    """Every edit of every token is shown, with the oracle's activation, and they make up the summary."""
    (choice,) = answer["choices"]
    ids = [*case.prompt, *choice["token_ids"]]
    moves = [*case.moves, *case.rule.then]
    acts = oracle.forward(ids, len(case.prompt), case.moves, [case.rule], reads=["low", "high", "other"]).acts
    shown = [
        token for token in (*choice["steering"]["prompt_tokens"], *choice["steering"]["tokens"]) if token is not None
    ]
    for number, (move, item) in enumerate(zip(moves, answer["steering"]["interventions"], strict=True)):
        made = {token["position"]: edit for token in shown for edit in token["edits"] if edit["intervention"] == number}
        assert len(made) == item["tokens"]["prompt"] + item["tokens"]["generated"]
        if not made:  # the rule may hold nowhere
            assert number == len(case.moves)
            continue
        before = [edit["act_before"] for edit in made.values()]
        assert before == pytest.approx([float(acts[move.sae][at, move.index]) for at in made], abs=1e-3)
        assert item["act_before"]["mean"] == pytest.approx(sum(before) / len(before), rel=1e-5)
        doses = [edit["dose"] for edit in made.values()]
        assert (item["dose"]["mean"], item["dose"]["max"]) == pytest.approx(
            (sum(doses) / len(doses), max(doses)), rel=1e-5
        )


def assert_aborted(server: Server, oracle: ReferenceModel, prompt: list[int], sae: str, num_new: int) -> None:
    plain = completed(server, prompt, None, max_tokens=num_new)["choices"][0]["token_ids"]
    acts = oracle.forward([*prompt, *plain], len(prompt), [], reads=[sae]).acts[sae][len(prompt) :, 11]
    candidates = [at for at, token in enumerate(plain) if token not in SPECIAL_IDS]
    loudest = max(candidates, key=lambda at: float(acts[at]))
    rule = When(Compared(sae, 11, float(acts[loudest]) - 0.01), tokens="generated")
    first = next(at for at in candidates if float(acts[at]) > rule.condition.bound)  # type: ignore[union-attr]
    body = {"prompt": prompt, "max_tokens": num_new, "ignore_eos": True, "temperature": 0}
    steering = {"rules": rules_on_the_wire([rule])}
    answer = completed(server, prompt, steering, max_tokens=num_new)
    (choice,) = answer["choices"]
    assert (choice["token_ids"], choice["finish_reason"]) == (plain[:first], "content_filter")
    assert streamed_choices(server, {**body, "steering": steering}) == {0: (choice["text"], "content_filter")}
