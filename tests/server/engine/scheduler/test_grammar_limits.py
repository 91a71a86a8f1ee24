"""A grammar that would hold up the steps of all is not let in, one that becomes slow is ended, and others are untouched."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tests.support.tiny_training import tokenizer
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
from vllm.v1.structured_output.request import StructuredOutputRequest

from saeclamp_server.engine.scheduler import grammar_limits
from saeclamp_server.engine.scheduler.grammar_limits import (
    GrammarLimits,
    GrammarTooSlowError,
    limit_grammars,
    try_grammar,
)

BOMB = "(a|aa|aaa|b?c?d?e?){1,200}" * 20
"""Minutes for each token of a real vocabulary, and tenths of a second for each of the hundred here."""


class Manager:
    """vLLM's manager of structured outputs, as far as it compiles."""

    def __init__(self) -> None:
        config = SimpleNamespace(disable_any_whitespace=False)
        own: Any = SimpleNamespace(structured_outputs_config=config, model_config=None, speculative_config=None)
        one = tokenizer()
        self.backend = XgrammarBackend(own, tokenizer=one, vocab_size=len(one))
        self.num_compiled = 0
        self.extra_s = 0.0
        """Seconds of processor time that each mask takes besides."""

    def _create_grammar(self, request: Any) -> Any:
        self.num_compiled += 1
        grammar = self.backend.compile_grammar(*request.structured_output_request.structured_output_key)
        fill = grammar.fill_bitmask

        def fill_slowly(*args: Any) -> None:
            end = time.thread_time() + self.extra_s
            while time.thread_time() < end:
                pass
            fill(*args)

        grammar.fill_bitmask = fill_slowly
        return grammar


def request(**constraint: Any) -> Any:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**constraint))
    return SimpleNamespace(
        request_id="one", structured_output_request=StructuredOutputRequest.from_sampling_params(params)
    )


def limited(failed: list[str], **limits: Any) -> Manager:
    manager = Manager()
    limit_grammars(manager, failed.append, GrammarLimits(**limits))
    return manager


@pytest.mark.parametrize(
    "constraint",
    [
        {"regex": r"\d{1,200}"},
        {"structural_tag": '{"type": "structural_tag", "format": {"type": "const_string", "value": "abc"}}'},
        {"json": {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "number"}}}}},
        {"grammar": 'root ::= "a" root | "b"'},
    ],
    ids=lambda constraint: next(iter(constraint)),
)
def test_a_usual_grammar_is_let_in_and_tried_once(constraint: dict[str, Any]) -> None:
    failed: list[str] = []
    manager = limited(failed)
    for _ in range(2):
        grammar = manager._create_grammar(request(**constraint))
        mask = manager.backend.allocate_token_bitmask(1)
        grammar.fill_bitmask(mask, 0)
        (first, *_) = grammar_limits._set_bits(mask[0])
        assert grammar.accept_tokens("one", [first])
    assert (manager.num_compiled, failed) == (2, []), "the trial is in another process"


def test_a_grammar_that_takes_long_for_a_token_is_not_let_in() -> None:
    with pytest.raises(GrammarTooSlowError, match="too slow"):
        limited([], max_token_s=0.02)._create_grammar(request(regex=BOMB))


def tried(create: Callable[[], Any], **limits: Any) -> None:
    try_grammar(create, lambda: Manager().backend.allocate_token_bitmask(1), GrammarLimits(**limits))


def test_a_compilation_that_takes_long_is_ended() -> None:
    with pytest.raises(GrammarTooSlowError):
        tried(lambda: [None for _ in iter(int, 1)], compile_s=0.5)


def test_a_trial_that_waits_for_something_is_ended() -> None:
    with pytest.raises(GrammarTooSlowError):
        tried(lambda: time.sleep(60), stuck_s=0.2)


def test_a_trial_that_takes_much_memory_is_ended() -> None:
    with pytest.raises(GrammarTooSlowError):
        tried(lambda: bytearray(1 << 28), max_memory=1 << 26)


def test_what_is_wrong_with_a_grammar_is_said_by_the_real_compilation() -> None:
    with pytest.raises(RuntimeError, match="grammar"):
        limited([])._create_grammar(request(grammar="root ::= ((("))


def test_a_trial_leaves_no_process_and_no_open_file(tmp_path: Any) -> None:
    before, children = len(os.listdir("/proc/self/fd")), psutil.Process().children()
    limited([])._create_grammar(request(regex="a|b"))
    assert len(os.listdir("/proc/self/fd")) == before
    assert psutil.Process().children() == children


def test_a_request_whose_grammar_becomes_slow_is_ended() -> None:
    failed: list[str] = []
    manager = limited(failed, max_token_s=0.05)
    grammar = manager._create_grammar(request(regex="a|b"))
    grammar.fill_bitmask(manager.backend.allocate_token_bitmask(1), 0)
    assert failed == []
    manager.extra_s = 4.5 * 0.05
    grammar.fill_bitmask(manager.backend.allocate_token_bitmask(1), 0)
    assert failed == ["one"]
