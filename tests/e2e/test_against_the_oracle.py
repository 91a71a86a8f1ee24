"""The engine's numbers are those of a plain transformers forward with clamps written the obvious way."""

from __future__ import annotations

import pytest
from tests.bundled import ACT, GOLDEN_GATE, MAX_ACT, OTHERS
from tests.e2e.agreement import assert_agreement
from tests.e2e.serving import Server
from tests.reference import Move, ReferenceModel
from transformers import PreTrainedTokenizerBase

BRIDGE_TEXT = "The Golden Gate Bridge in San Francisco was opened to traffic in 1937 and is painted orange."

CASES = {
    "unsteered": [],
    "clamp": [Move("bundled", GOLDEN_GATE, "clamp", ACT)],
    "clamp to a negative value": [Move("bundled", GOLDEN_GATE, "clamp", -80.0)],
    "add": [Move("bundled", GOLDEN_GATE, "add", 90.0)],
    "subtract": [Move("bundled", OTHERS[1][0], "add", -60.0)],
    "ablate": [Move("bundled", GOLDEN_GATE, "ablate")],
    "ablate at the prompt only": [Move("bundled", GOLDEN_GATE, "ablate", tokens="prompt")],
    "at least": [Move("bundled", GOLDEN_GATE, "at_least", ACT / 2)],
    "at most": [Move("bundled", GOLDEN_GATE, "at_most", 20.0)],
    "at most a negative value": [Move("bundled", OTHERS[0][0], "at_most", -60.0)],
    "scale": [Move("bundled", GOLDEN_GATE, "scale", -1.5)],
    "several features": [
        Move("bundled", GOLDEN_GATE, "clamp", 105.0),
        Move("bundled", OTHERS[0][0], "clamp", 84.0),
        Move("bundled", OTHERS[2][0], "add", 30.0),
        Move("bundled", OTHERS[3][0], "ablate"),
        Move("bundled", OTHERS[4][0], "at_least", 60.0),
    ],
    "two layers": [Move("bundled", GOLDEN_GATE, "clamp", 120.0), Move("second", 7, "clamp", 40.0)],
    "the earlier layer alone": [Move("second", 7, "clamp", 40.0), Move("second", 9, "add", -30.0)],
    "prompt only": [Move("bundled", GOLDEN_GATE, "clamp", ACT, tokens="prompt")],
    "generated only": [Move("bundled", GOLDEN_GATE, "clamp", ACT, tokens="generated")],
    "one feature, two scopes": [
        Move("bundled", GOLDEN_GATE, "clamp", ACT, tokens="prompt"),
        Move("bundled", GOLDEN_GATE, "clamp", -50.0, tokens="generated"),
    ],
    "two layers, two scopes": [
        Move("second", 3, "add", 35.0, tokens="prompt"),
        Move("bundled", OTHERS[0][0], "clamp", 84.0, tokens="generated"),
    ],
}


@pytest.mark.parametrize("moves", CASES.values(), ids=CASES.keys())
def test_logprobs_and_greedy_tokens_are_the_oracles(
    server: Server, oracle: ReferenceModel, tokenizer: PreTrainedTokenizerBase, moves: list[Move]
) -> None:
    assert_agreement(server, oracle, tokenizer(BRIDGE_TEXT)["input_ids"], moves)


def test_special_tokens_inside_a_chat_are_left_alone(
    server: Server, oracle: ReferenceModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    chat = [{"role": "user", "content": "How do I bake bread?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert set(prompt[1:]) & set(tokenizer.all_special_ids)
    assert_agreement(server, oracle, prompt, [Move("bundled", GOLDEN_GATE, "clamp", ACT)])


def test_a_prompt_of_one_token_is_steered_from_its_first_generated_token_on(
    server: Server, oracle: ReferenceModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt = tokenizer("The")["input_ids"]
    assert len(prompt) == 1
    answer = server.complete(
        prompt,
        [{"op": "clamp", "feature": f"bundled/{GOLDEN_GATE}", "value": ACT, "unit": "act"}],
        logprobs=0,
        return_token_ids=True,
    )
    (choice,) = answer["choices"]
    own, best = oracle.generated_logprobs(prompt, choice["token_ids"], [Move("bundled", GOLDEN_GATE, "clamp", ACT)])
    assert own == pytest.approx(best, abs=1e-3)
    assert own == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-3)


def test_max_act_is_a_multiple_of_the_stored_maximum(server: Server, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = tokenizer(BRIDGE_TEXT)["input_ids"]
    in_act = server.complete(
        prompt, [{"op": "clamp", "feature": f"bundled/{GOLDEN_GATE}", "value": MAX_ACT / 2, "unit": "act"}]
    )
    in_max_act = server.complete(prompt, [{"op": "clamp", "feature": "bundled/golden-gate", "value": 0.5}])
    assert in_act["choices"][0]["text"] == in_max_act["choices"][0]["text"]
    assert in_max_act["steering"]["interventions"][0]["value_act"] == MAX_ACT / 2
    assert in_act["steering"]["spec"] == in_max_act["steering"]["spec"]
