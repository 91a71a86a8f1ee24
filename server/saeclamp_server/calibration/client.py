"""Answers of a running server, steered or not, and how likely it finds them unsteered. Many at once: the engine batches."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from saeclamp import (
    APIConnectionError,
    APIStatusError,
    AsyncClient,
    BadRequestError,
    ChatCompletion,
    Clamp,
    Completion,
    FeatureIndex,
    InternalServerError,
    NotFoundError,
    RateLimitError,
    Receipt,
    SaeclampError,
)
from saeclamp._requests import default_headers, server_root
from saeclamp_saes.concurrency import gather_first_error
from saeclamp_saes.io.sanitize import escape_to_one_line
from saeclamp_server.calibration.errors import CalibrationError
from saeclamp_server.calibration.metrics import MeasuredAnswer

T = TypeVar("T")


@dataclass(frozen=True)
class Decoding:
    """Parameters by which the next token is chosen."""

    name: str
    temperature: float
    repetition_penalty: float
    seeds: tuple[int | None, ...]
    """Seeds, one answer each; None for greedy decoding, which needs none."""


GREEDY = Decoding("greedy", 0, 1.1, (None,))


def sampling_decoding(num_seeds: int) -> Decoding:
    """Make the sampled decoding, with seeds from 0."""
    return Decoding("sampled", 0.7, 1.0, tuple(range(num_seeds)))


@dataclass(frozen=True)
class CalibrationDose:
    """A feature, and the activation that it is clamped to."""

    sae: str
    index: int
    act: float
    """Activation in the encoder's units."""

    @property
    def clamp(self) -> Clamp:
        """The clamp as the API takes it."""
        return Clamp(feature=FeatureIndex(sae=self.sae, index=self.index), value=self.act, unit="act")


class AnswerClient:
    """One server, asked the same way each time."""

    def __init__(self, client: AsyncClient, max_tokens: int, plain: bool, at_once: int, sae_sha256: str) -> None:
        """
        Take a client, which stays the caller's.

        max_tokens: largest number of tokens of an answer
        plain:      True if prompts are texts to be continued; else they are a user's messages
        at_once:    requests that wait for an answer at a time
        sae_sha256: hash of the SAE that the server must have
        """
        self._client = client
        self._max_tokens = max_tokens
        self._plain = plain
        self._slots = asyncio.Semaphore(at_once)
        self._sae_sha256 = sae_sha256

    async def check(self, prompt: str, decoding: Decoding, doses: Sequence[CalibrationDose]) -> None:
        """
        Check that the server has the very SAE and takes these doses, with one generated token per dose.

        Raises CalibrationError.
        """
        await _ask_all(self._check(prompt, decoding, dose) for dose in doses)

    async def answers(
        self, prompts: Sequence[str], decodings: Sequence[Decoding], dose: CalibrationDose | None
    ) -> dict[str, list[MeasuredAnswer]]:
        """
        Ask every prompt, under every decoding and seed.

        dose: None for unsteered answers
        returns: by decoding, each in the order of prompts and seeds
        Raises CalibrationError.
        """
        asked = [
            (decoding, number, prompt, seed)
            for decoding in decodings
            for number, prompt in enumerate(prompts)
            for seed in decoding.seeds
        ]
        said = await _ask_all(
            self._answer(number, prompt, decoding, seed, dose) for decoding, number, prompt, seed in asked
        )
        answers: dict[str, list[MeasuredAnswer]] = {decoding.name: [] for decoding in decodings}
        for (decoding, *_), answer in zip(asked, said, strict=True):
            answers[decoding.name].append(answer)
        return answers

    async def _check(self, prompt: str, decoding: Decoding, dose: CalibrationDose) -> None:
        async with self._slots:
            answer = await self._generate(prompt, decoding, decoding.seeds[0], dose, max_tokens=1)
        self._check_sae(answer.steering, dose)

    async def _answer(
        self, number: int, prompt: str, decoding: Decoding, seed: int | None, dose: CalibrationDose | None
    ) -> MeasuredAnswer:
        async with self._slots:
            answer = await self._generate(prompt, decoding, seed, dose, self._max_tokens)
            if dose is not None:
                self._check_sae(answer.steering, dose)
            prompt_ids, ids = _token_ids(answer)
            nll = await self._nll(prompt_ids, ids) if ids else 0.0
        return MeasuredAnswer(number, answer.text, len(ids), nll, seed, _mean_dose(answer.steering))

    async def _generate(
        self, prompt: str, decoding: Decoding, seed: int | None, dose: CalibrationDose | None, max_tokens: int
    ) -> ChatCompletion | Completion:
        params: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": decoding.temperature,
            "repetition_penalty": decoding.repetition_penalty,
            "return_token_ids": True,
            **({} if seed is None else {"seed": seed}),
        }
        steering = None if dose is None else dose.clamp
        answer: ChatCompletion | Completion
        if self._plain:
            answer = await self._client.completions.create(prompt=prompt, steering=steering, **params)
        else:
            messages = [{"role": "user", "content": prompt}]
            answer = await self._client.chat.completions.create(messages=messages, steering=steering, **params)
        return answer

    async def _nll(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> float:
        """Compute the negative log-likelihood of an answer after its prompt, unsteered, in nats, summed over its tokens."""
        # the answer's own ids, not its text, which may be tokenised otherwise; and one token more, as the API generates one
        scored = await self._client.completions.create(
            prompt=[*prompt_ids, *ids], max_tokens=1, temperature=0, prompt_logprobs=0
        )
        entries = (scored.choices[0].model_extra or {})["prompt_logprobs"][len(prompt_ids) :]
        return -sum(float(entry[str(token)]["logprob"]) for entry, token in zip(entries, ids, strict=True))

    def _check_sae(self, receipt: Receipt | None, dose: CalibrationDose) -> None:
        assert receipt is not None  # or the client would have raised
        if receipt.sae.get(dose.sae) != f"sha256:{self._sae_sha256}":
            raise CalibrationError(
                f"The server serves other weights, or other options, under the name {dose.sae!r} than the SAE given here: "
                "start it with the same --sae."
            )


async def engine_version(url: str) -> str | None:
    """Ask the server for vLLM's version; None where it does not tell."""
    try:
        async with httpx.AsyncClient(timeout=5, headers=default_headers(None, None)) as http:
            told = (await http.get(f"{server_root(url)}/version")).json()
    except (httpx.HTTPError, ValueError):
        return None
    return told.get("version") if isinstance(told, dict) else None


def _token_ids(answer: ChatCompletion | Completion) -> tuple[list[int], list[int]]:
    """Return the token ids of the prompt, with the chat template's, and of the answer."""
    choice = answer.choices[0].model_extra or {}
    # vLLM puts the prompt's ids beside the choices for a chat, and into them for a completion
    prompt_ids = (answer.model_extra or {}).get("prompt_token_ids") or choice.get("prompt_token_ids")
    ids = choice.get("token_ids")
    if prompt_ids is None or ids is None:
        raise CalibrationError("The server returns no token ids, which perplexity needs: is it a `saeclamp serve`?")
    return prompt_ids, ids


def _mean_dose(receipt: Receipt | None) -> float | None:
    dose = receipt.interventions[0].dose if receipt else None
    return dose.mean if dose else None


async def _ask_all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await calls at the same time. The first error of the client is raised as a CalibrationError, others as they are."""
    try:
        return await gather_first_error(calls)
    except SaeclampError as exc:
        raise _sentence(exc) from exc


def _sentence(exc: SaeclampError) -> CalibrationError:
    """Turn an error of the client into a sentence for the user."""
    said = escape_to_one_line(str(exc))
    if isinstance(exc, APIStatusError) and exc.code == "unknown_sae":
        return CalibrationError(
            "The server does not serve the SAE under this name: start it with the same --sae, or write the name that it has "
            f"there before the SAE here, as in NAME=SAE. ({said})"
        )
    if isinstance(exc, BadRequestError | NotFoundError) and "chat template" in said:
        return CalibrationError(
            f"The model has no chat template, so give --plain: prompts are then continued as text. ({said})"
        )
    may_pass = isinstance(exc, APIConnectionError | RateLimitError | InternalServerError)
    ended = said if said.endswith((".", "?", "!")) else f"{said}."
    return CalibrationError(f"The server could not answer: {ended}{' The same command goes on.' if may_pass else ''}")
