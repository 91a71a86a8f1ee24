"""The chunks of a streamed answer, read the plain way."""

from __future__ import annotations

import json
from typing import Any

import httpx


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    """Every `data:` event's JSON; the stream must end in [DONE] and hold no named events."""
    assert response.status_code == 200, response.text
    lines = [line for line in response.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
