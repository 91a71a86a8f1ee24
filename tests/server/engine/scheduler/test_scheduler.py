"""Outputs of a step that may not leave as vLLM has made them."""

from __future__ import annotations

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

from saeclamp_server.engine.scheduler.scheduler import last_outputs


def test_tokens_of_the_step_in_which_an_error_ends_a_request_do_not_leave() -> None:
    gated, error = (
        EngineCoreOutput("gated", [1, 2]),
        EngineCoreOutput("gated", [], finish_reason=FinishReason.ERROR),
    )
    plain, plain_error = EngineCoreOutput("plain", [3]), EngineCoreOutput("plain", [], finish_reason=FinishReason.ERROR)
    other = EngineCoreOutput("other", [4])
    outputs = {0: EngineCoreOutputs(outputs=[gated, plain, error, plain_error]), 1: EngineCoreOutputs(outputs=[other])}
    found = last_outputs(outputs, {"gated", "other"})
    assert found["gated"] is error
    assert found["other"] is other
    assert "plain" not in found
    assert [id(output) for output in outputs[0].outputs] == [id(plain), id(error), id(plain_error)]
    assert [id(output) for output in outputs[1].outputs] == [id(other)]
