"""Unsteered, steered and prompted answers, drawn with the same seeds in one batch, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from math import exp
from typing import Any

from saeclamp.types import Compare, ComparedAnswer, ComparedToken, Comparison, Difference
from saeclamp_server.calibration.text import distinct_2, repetition
from saeclamp_server.conversation import Conversation
from saeclamp_server.model import Model, Outcome, Prompt, Run, expected, prompt_of, run_all
from saeclamp_server.steering import ResolvedSteering, Served, resolve
from saeclamp_server.trying.divergence import kl_at_least

NUM_LIKELY = 20
"""Tokens of each distribution that are known: as many as vLLM gives unless it is told otherwise."""
MAX_EXPONENT = 700.0
"""Beyond which a perplexity is no number any more."""


@dataclass(frozen=True)
class _Column:
    prompt: Prompt
    steering: ResolvedSteering | None = None


async def compare(request: Compare, model: Model, served: Served) -> Comparison:
    """Answer `POST /v1/steering/compare`. Raises RequestError."""
    columns = await _columns(request, model, served)
    path = "text" if request.text is not None else "messages"
    drawn = [(column, seed) for column in columns.values() for seed in request.seeds]
    outcomes = await run_all(model, [(_draw(column, seed, request), path) for column, seed in drawn])
    plain = columns["default"].prompt.ids
    seen = await expected(model, [(plain, outcome.ids) for outcome in outcomes], path, NUM_LIKELY)
    answers = [
        _answer(seed, outcome, rows, model) for (_, seed), outcome, rows in zip(drawn, outcomes, seen, strict=True)
    ]
    num = len(request.seeds)
    default, steered, *prompted = (tuple(answers[start : start + num]) for start in range(0, len(answers), num))
    return Comparison(
        default=default,
        steered=_with_differences(steered, default),
        prompted=_with_differences(prompted[0], default) if prompted else None,
        receipts=tuple(outcome.receipt for outcome in outcomes if outcome.receipt is not None),
    )


async def _columns(request: Compare, model: Model, served: Served) -> dict[str, _Column]:
    prompt, _ = await prompt_of(model, request.text, request.messages, answers=True)
    conversation = None if prompt.spans is None else Conversation(len(prompt.ids), prompt.spans)
    steering = resolve(request.steering.model_copy(update={"readout": None}), served, conversation)
    columns = {"default": _Column(prompt), "steered": _Column(prompt, steering)}
    if request.prompted is not None:
        messages = _told(request.messages or (), request.prompted)
        columns["prompted"] = _Column(await model.of_messages(messages, "messages", answers=True))
    return columns


def _told(messages: Sequence[Mapping[str, Any]], words: str) -> list[Mapping[str, Any]]:
    """Put words into the system message, behind what it says already."""
    first, *rest = messages
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        return [{**first, "content": f"{first['content']}\n\n{words}"}, *rest]
    return [{"role": "system", "content": words}, *messages]


def _draw(column: _Column, seed: int, request: Compare) -> Run:
    sampling = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "repetition_penalty": request.repetition_penalty,
        "seed": seed,
    }
    return Run(column.prompt.ids, column.steering, request.max_tokens, sampling, logprobs=NUM_LIKELY)


def _answer(seed: int, outcome: Outcome, seen: Sequence[Mapping[int, float]], model: Model) -> ComparedAnswer:
    """seen: of each token of the answer, what the unsteered model expects there"""
    tokens = tuple(
        ComparedToken(id=token, text=text, logprob=own[token], default_logprob=plain[token], kl=kl_at_least(own, plain))
        for token, text, own, plain in zip(
            outcome.ids, model.token_texts(outcome.ids), outcome.logprobs, seen, strict=True
        )
    )
    num = len(tokens)
    return ComparedAnswer(
        seed=seed,
        text=outcome.text,
        finish_reason=outcome.finish_reason,
        tokens=tokens,
        kl=sum(token.kl for token in tokens) / num if num else None,
        perplexity=exp(min(-sum(token.default_logprob for token in tokens) / num, MAX_EXPONENT)) if num else None,
        distinct_2=distinct_2(outcome.text),
        repetition=repetition(outcome.text),
    )


def _with_differences(
    answers: Sequence[ComparedAnswer], default: Sequence[ComparedAnswer]
) -> tuple[ComparedAnswer, ...]:
    return tuple(
        answer.model_copy(update={"differences": _differences(plain, answer)})
        for answer, plain in zip(answers, default, strict=True)
    )


def _differences(default: ComparedAnswer, own: ComparedAnswer) -> tuple[Difference, ...]:
    one, other = ([token.id for token in answer.tokens] for answer in (default, own))
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return tuple(
        Difference(op=op, default=(start, end), own=(first, last))
        for op, start, end, first, last in matcher.get_opcodes()
        if op != "equal"
    )
