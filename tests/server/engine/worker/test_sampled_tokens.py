"""Of several tokens that are sampled at once, those stay that vLLM's scheduler keeps."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.request import Request

from saeclamp_server.engine.worker.sampled_tokens import AnswerEnd

PROMPT = [5, 6, 7]
EOS, OTHER_EOS = 2, 3


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"ignore_eos": True},
        {"stop_token_ids": [9]},
        {"stop_token_ids": [9], "ignore_eos": True},
        {"max_tokens": 4},
        {"max_tokens": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("sampled", [[4, EOS, 4, 4], [OTHER_EOS, 4], [4, 4, 9, EOS], [4, 4, 4, 4], [4]], ids=str)
@pytest.mark.parametrize("num_before", [0, 2])
def test_the_tokens_that_stay_are_those_that_the_scheduler_keeps(
    asked: dict[str, Any], sampled: list[int], num_before: int
) -> None:
    params = SamplingParams(**{"max_tokens": 20, **asked})
    params.update_from_generation_config({"eos_token_id": [EOS, OTHER_EOS]}, EOS)
    request = Request("1", PROMPT, params, None)
    request.append_output_token_ids([4] * num_before)
    kept = 0
    for token in sampled:
        request.append_output_token_ids(token)
        kept += 1
        if check_stop(request, 1000):
            break
    end = AnswerEnd.from_params(params, len(PROMPT))
    assert end.num_kept(sampled, len(PROMPT) + num_before) == kept


def test_what_generates_nothing_has_no_end() -> None:
    assert AnswerEnd.from_params(None, 3).num_kept([1, 2, 3], 10_000) == 3
