"""The engine's numbers are those of a plain transformers forward with clamps written the obvious way."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import torch
from tests.oracles.reference import Move, ReferenceModel, ReferenceSAE
from tests.support.agreement import assert_agreement
from tests.support.bundled import ACT, GOLDEN_GATE, LAYER, MAX_ACT, OTHERS, STRENGTH, UNNAMED
from tests.support.serving import Server
from transformers import PreTrainedTokenizerBase

from saeclamp_saes.library.reference import BUNDLED

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


def test_special_tokens_are_steered_on_request(
    server: Server, oracle: ReferenceModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    chat = [{"role": "user", "content": "How do I bake bread?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert_agreement(server, oracle, prompt, [Move("second", 7, "add", 9.0, special=True)])


def test_roles_are_what_their_messages_say(server: Server, tokenizer: PreTrainedTokenizerBase) -> None:
    chat = [
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"},
        {"role": "user", "content": "How do I bake bread?"},
    ]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])

    def said(role: str) -> list[int]:
        """Behind <|im_start|>, the role and a newline, up to <|im_end|>."""
        head = [start, *tokenizer(f"{role}\n")["input_ids"]]
        firsts = [n + len(head) for n in range(len(prompt)) if prompt[n : n + len(head)] == head]
        return [
            position for first in firsts if end in prompt[first:] for position in range(first, prompt.index(end, first))
        ]

    users = said("user")
    assert tokenizer.decode([prompt[position] for position in users]) == "userHow do I bake bread?"

    def asked(tokens: object) -> dict[str, object]:
        return {"op": "clamp", "feature": "bundled/golden-gate", "value": STRENGTH, "tokens": tokens}

    answers = {}
    for role in ("user", "assistant"):
        response = server.post(
            "/v1/chat/completions",
            messages=chat,
            temperature=0,
            max_tokens=12,
            ignore_eos=True,
            steering={"interventions": [asked({"roles": [role]})]},
        )
        assert response.status_code == 200, response.text
        answers[role] = response.json()
    by_position = server.complete(prompt, [asked({"positions": users})], max_tokens=12, ignore_eos=True)
    assert answers["user"]["choices"][0]["message"]["content"] == by_position["choices"][0]["text"]
    assert answers["user"]["steering"]["spec"] == by_position["steering"]["spec"]
    counts = {role: answer["steering"]["interventions"][0]["tokens"] for role, answer in answers.items()}
    assert counts == {
        "user": {"prompt": len(users), "generated": 0, "sinks": 0},
        "assistant": {"prompt": len(said("assistant")), "generated": 11, "sinks": 0},
    }


def test_the_maximum_of_a_feature_without_a_name_is_its_labels(server: Server) -> None:
    move = {"op": "clamp", "feature": f"bundled/{UNNAMED}", "value": 0.5}
    (item,) = server.complete("Hello there", [move])["steering"]["interventions"]
    row = pq.read_table(BUNDLED["bundled"] / "labels.parquet").slice(UNNAMED, 1).to_pylist()[0]
    assert row["index"] == UNNAMED
    assert item["value_act"] == pytest.approx(row["max_act"] / 2)


def test_a_value_in_residual_norms_is_an_edit_of_that_length(
    server: Server, oracle: ReferenceModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt = tokenizer(BRIDGE_TEXT)["input_ids"]
    move = {"op": "add", "feature": f"bundled/{GOLDEN_GATE}", "value": 0.5, "unit": "resid_norm", "tokens": "prompt"}
    (item,) = server.complete(prompt, [move])["steering"]["interventions"]
    stream = oracle.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[LAYER + 1][0, 1:].detach()
    length = item["value_act"] * oracle.saes["bundled"].tensors["W_dec"][GOLDEN_GATE].norm()
    assert item["dose"]["mean"] == pytest.approx(float((length / stream.norm(dim=1)).mean()), rel=1e-4)
    assert item["dose"]["mean"] == pytest.approx(0.5, rel=0.15), "the median length of another text is near this one's"


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


def test_the_bundled_sae_is_the_one_the_oracle_reads() -> None:
    assert ReferenceSAE(BUNDLED["bundled"]).reads == f"blocks.{LAYER}.hook_resid_post"
