"""Unsteered, steered and prompted answers, drawn with the same seeds in one batch, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from saeclamp.types import Compare, ComparedAnswer, ComparedToken, Comparison
from saeclamp_server.api.likelihoods import Likelihoods
from saeclamp_server.api.model_client import (
    GenerateRequest,
    GenerateResult,
    ModelClient,
    Prompt,
    generate_all,
    score_answers,
    tokenize_request,
)
from saeclamp_server.api.progress import ProgressCounter
from saeclamp_server.api.steering.differences import differences
from saeclamp_server.api.steering.divergence import kl_lower_bound
from saeclamp_server.calibration.text_metrics import distinct_2, repetition
from saeclamp_server.errors import InvalidRequestError
from saeclamp_server.steering import ResolvedSteering, SteeringContext, resolve
from saeclamp_server.steering.chat_spans import ChatSpans
from saeclamp_server.threads import run_computation

NUM_LIKELY = 20
"""Tokens of each distribution that are known: as many as vLLM gives unless it is told otherwise."""
MAX_PROMPT = 1 << 14
"""Tokens of a prompt whose answers are compared: the engine says what it expects at each of them too, for every answer."""
MAX_EXPONENT = 700.0
"""Exponent beyond which a perplexity is no finite number any more."""


@dataclass(frozen=True)
class ComparedRun:
    prompt: Prompt
    steering: ResolvedSteering | None = None


async def compare(
    request: Compare, model: ModelClient, context: SteeringContext, counter: ProgressCounter
) -> Comparison:
    """Answer `POST /v1/steering/compare`. Raises RequestError."""
    path = "text" if request.text is not None else "messages"
    columns = await _columns(request, model, context, path)
    drawn = [(column, seed) for column in columns.values() for seed in request.seeds]
    counter.begin("answering", len(drawn) * request.max_tokens)
    outcomes = await generate_all(model, [(_draw(column, seed, request), path) for column, seed in drawn])
    plain = columns["default"].prompt.ids
    counter.begin("reading answers with the unsteered model", len(drawn))
    seen = await score_answers(model, [(plain, outcome.ids) for outcome in outcomes], path, NUM_LIKELY)
    num = len(request.seeds)
    answers: list[ComparedAnswer] = []
    for (_, seed), outcome, rows in zip(drawn, outcomes, seen, strict=True):
        default = answers[len(answers) % num] if len(answers) >= num else None
        answers.append(await run_computation(_answer, seed, outcome, rows, default, model))
    unsteered, steered, *prompted = (tuple(answers[start : start + num]) for start in range(0, len(answers), num))
    return Comparison(
        default=unsteered,
        steered=steered,
        prompted=prompted[0] if prompted else None,
        receipts=tuple(outcome.receipt for outcome in outcomes if outcome.receipt is not None),
    )


async def _columns(request: Compare, model: ModelClient, context: SteeringContext, path: str) -> dict[str, ComparedRun]:
    prompt, _ = await tokenize_request(model, request.text, request.messages, answers=True)
    _refuse_long(prompt, path)
    conversation = None if prompt.spans is None else ChatSpans(len(prompt.ids), prompt.spans)
    # a comparison shows no readout
    steering = resolve(request.steering.model_copy(update={"readout": None}), context, conversation)
    columns = {"default": ComparedRun(prompt), "steered": ComparedRun(prompt, steering)}
    if request.prompted is not None:
        messages = _told(request.messages or (), request.prompted)
        columns["prompted"] = ComparedRun(await model.from_messages(messages, "messages", answers=True))
        _refuse_long(columns["prompted"].prompt, path)
    return columns


def _refuse_long(prompt: Prompt, path: str) -> None:
    if len(prompt.ids) > MAX_PROMPT:
        raise InvalidRequestError(
            f"{path}: these are {len(prompt.ids)} tokens; answers to at most {MAX_PROMPT} can be compared.", path
        )


def _told(messages: Sequence[Mapping[str, Any]], words: str) -> list[Mapping[str, Any]]:
    """Put words into the system message, behind what it says already."""
    first, *rest = messages
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        return [{**first, "content": f"{first['content']}\n\n{words}"}, *rest]
    return [{"role": "system", "content": words}, *messages]


def _draw(column: ComparedRun, seed: int, request: Compare) -> GenerateRequest:
    sampling = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "repetition_penalty": request.repetition_penalty,
        "seed": seed,
    }
    return GenerateRequest(column.prompt.ids, column.steering, request.max_tokens, sampling, logprobs=NUM_LIKELY)


def _answer(
    seed: int, outcome: GenerateResult, seen: Likelihoods, default: ComparedAnswer | None, model: ModelClient
) -> ComparedAnswer:
    """
    Measure an answer.

    seen:    of each of its tokens, what the unsteered model expects there
    default: the unsteered answer of the same seed; None for itself
    """
    tokens = tuple(
        ComparedToken(
            id=token,
            text=text,
            bytes=raw,
            logprob=own[token],
            default_logprob=plain[token],
            kl=kl_lower_bound(own, plain),
        )
        for token, text, raw, own, plain in zip(
            outcome.ids,
            model.token_texts(outcome.ids),
            model.token_bytes(outcome.ids),
            outcome.logprobs,
            seen,
            strict=True,
        )
    )
    num = len(tokens)
    return ComparedAnswer(
        seed=seed,
        text=outcome.text,
        finish_reason=outcome.finish_reason,
        tokens=tokens,
        differences=differences([token.id for token in default.tokens], outcome.ids) if default else (),
        kl=sum(token.kl for token in tokens) / num if num else None,
        perplexity=exp(min(-sum(token.default_logprob for token in tokens) / num, MAX_EXPONENT)) if num else None,
        distinct_2=distinct_2(outcome.text),
        repetition=repetition(outcome.text),
    )
