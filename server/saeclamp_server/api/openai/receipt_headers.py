"""Proof of steering for those who never see an answer's body: its HTTP headers, and a line of the trace."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from saeclamp.types import Receipt

SPEC_HEADER = "x-saeclamp-spec"
EDITED_HEADER = "x-saeclamp-edited-tokens"


def headers_of(spec: str, receipt: Receipt | None = None) -> dict[str, str]:
    """
    Write the headers of a steered answer; those of a stream leave before there is a receipt.

    Tokens are counted once for each intervention that edited them, as in `saeclamp_tokens`.
    """
    headers = {SPEC_HEADER: spec}
    if receipt is not None:
        tokens = [item.tokens for item in receipt.interventions]
        headers[EDITED_HEADER] = str(sum(one.prompt + one.generated for one in tokens))
    return headers


@dataclass
class TraceEntry:
    """A call's line of the trace, filled in until the call has ended."""

    path: str
    request_id: str | None
    """The `x-request-id` of the answer."""
    model: str | None
    spec: str = ""
    time: float = field(default_factory=time.time)
    id: str | None = None
    """The answer's id."""
    receipt: Receipt | None = None
    error: str | None = None
    """Reason why there is no answer."""

    def to_json(self) -> dict[str, Any]:
        """Write a line. A call that ended with neither a receipt nor an error was given up by its client, or by vLLM."""
        status = "failed" if self.error is not None else "answered" if self.receipt is not None else "aborted"
        return {
            "time": round(self.time, 3),
            "duration_s": round(time.time() - self.time, 3),
            "status": status,
            "path": self.path,
            "id": self.id,
            "request_id": self.request_id,
            "model": self.model,
            "spec": self.spec,
            "receipt": self.receipt.model_dump(mode="json") if self.receipt is not None else None,
            "error": self.error,
        }
