"""Unsteered, steered and prompted answers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from saeclamp.types.base import Answer
from saeclamp.types.inspect import PassageSelection, Text
from saeclamp.types.receipts import Receipt
from saeclamp.types.rows import Tabular
from saeclamp.types.steering import Steering

MAX_SEEDS = 32
MAX_COMPARED = 2048
"""Tokens of one answer."""


class Compare(PassageSelection):
    """Body of `POST /v1/steering/compare`: what is continued or answered, the steering, and how answers are drawn."""

    steering: Steering
    prompted: Text | None = None
    """Words of a prompt in place of the steering: a system message, behind one that is there. None: no such column."""
    seeds: Annotated[
        tuple[Annotated[int, Field(strict=True, ge=0, lt=2**32)], ...], Field(min_length=1, max_length=MAX_SEEDS)
    ] = (0,)
    """One answer of each column for each, which is shared by the columns."""
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=MAX_COMPARED)] = 100
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1
    repetition_penalty: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = 1

    @model_validator(mode="after")
    def _is_one_question(self) -> Compare:
        if self.prompted is not None and self.messages is None:
            raise ValueError("'prompted' is a system message, so it needs 'messages'")
        if not self.steering.interventions and not self.steering.rules:
            raise ValueError("'steering' changes nothing, so there is nothing to compare")
        return self


class ComparedToken(Answer):
    """A token of an answer."""

    id: int
    text: str
    bytes: tuple[int, ...] | None = None
    """Bytes of a token that is a part of a character, which `text` shows as U+FFFD: its neighbours have the rest."""
    logprob: float
    """As its own column saw it."""
    default_logprob: float
    """As the unsteered model sees it behind the same answer so far, and behind the prompt of the default column."""
    kl: float
    """
    Kullback-Leibler divergence of the column's next-token distribution from the unsteered one, in nats: at least this much,
    as it is computed of the likeliest tokens of both, and all others are one.
    """


class Difference(Answer):
    """A piece of an answer that is not in the default one, or the other way round; bounds are token numbers."""

    op: Literal["replace", "delete", "insert"]
    default: tuple[int, int]
    own: tuple[int, int]


class ComparedAnswer(Answer):
    """One answer of a column."""

    seed: int
    text: str
    finish_reason: str | None = None
    tokens: tuple[ComparedToken, ...]
    differences: tuple[Difference, ...] = ()
    """From the default column's answer of the same seed."""
    kl: float | None = None
    """Mean over its tokens."""
    perplexity: float | None = None
    """Under the unsteered model, behind the plain prompt."""
    distinct_2: float | None = None
    """Share of its pairs of neighbouring words that are different; None for fewer than two words."""
    repetition: float | None = None
    """Share of its last 20 words that stood among these before."""


class Comparison(Tabular[ComparedAnswer], Answer):  # type: ignore[misc]  # BaseModel's iterator is of fields
    """Columns with one answer for each seed, in the order of the request."""

    object: str = "steering.comparison"
    default: tuple[ComparedAnswer, ...]
    steered: tuple[ComparedAnswer, ...]
    prompted: tuple[ComparedAnswer, ...] | None = None
    receipts: tuple[Receipt, ...]
    """Receipts of the steered answers."""

    @property
    def columns(self) -> dict[str, tuple[ComparedAnswer, ...]]:
        """The columns by name."""
        columns = {"default": self.default, "steered": self.steered, "prompted": self.prompted}
        return {name: answers for name, answers in columns.items() if answers is not None}

    def _rows(self) -> Sequence[ComparedAnswer]:
        return [answer for answers in self.columns.values() for answer in answers]

    def _records(self) -> list[dict[str, Any]]:
        return [
            {"column": name, **answer.model_dump(exclude={"tokens", "differences"})}
            for name, answers in self.columns.items()
            for answer in answers
        ]
