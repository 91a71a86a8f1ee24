"""Progress of a request that takes longer."""

from __future__ import annotations

from typing import Literal

from saeclamp.types.base import Answer


class Progress(Answer):
    """An event of `compare`, `suggest`, `contrast` and `attribute`, where `Accept: text/event-stream` asks for events."""

    type: Literal["progress"] = "progress"
    what: str
    """Name of what is being done, in a few words. Each such thing is counted by itself, one after the other."""
    done: int
    of: int
    """Tokens to be generated, texts to be read, or parts to be computed. It grows where more turns out to be needed."""
