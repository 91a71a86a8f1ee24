"""OpenAI's error envelope, in which every refusal comes."""

from __future__ import annotations

from saeclamp.types.base import Answer


class ErrorDetail(Answer):
    """The error itself: a message, its kind, and the place of what is wrong."""

    message: str
    type: str
    param: str | None = None
    """JSON path of the offending value, or the parameter's name."""
    code: str | int | None = None


class ErrorBody(Answer):
    """The body of every answer that is an error."""

    error: ErrorDetail
