"""
Which blocks of the prefix cache steered requests may share: those that were computed under the same edits.

A block's keys and values depend on its tokens, on the tokens before it, and on what was edited at all those positions. vLLM
hashes the tokens; here each hash is joined with the edits up to the end of its block. Blocks before the first edit keep
vLLM's own hash, so that steering what is generated leaves the prompt's blocks shared with everybody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from saeclamp_server.program import SteeringProgram
from saeclamp_server.scopes import resolved

Hasher: TypeAlias = Callable[[Any], list[bytes]]
"""vLLM's: from a request to the hashes of its full blocks that are not in `block_hashes` yet."""


class EditedBlocks:
    """A program's edits, block by block, of one request."""

    def __init__(self, program: SteeringProgram, prompt_len: int, secret: bytes) -> None:
        """`secret` is this engine's: users see specs, and could otherwise write a salt that meets a block's hash."""
        weights = dict(program.saes)
        self._edits = [
            ((weights[edit.sae], edit.index, edit.op, edit.value, edit.special), resolved(edit.tokens, prompt_len))
            for edit in program.edits
        ]
        self._secret = secret

    def within(self, start: int, end: int) -> str | None:
        """What is edited at the positions from `start` to before `end`, equal for equal edits; None for nothing."""
        active = sorted(
            (*edit, [(max(first, start), min(last, end)) for first, last in ranges if first < end and last > start])
            for edit, ranges in self._edits
            if any(first < end and last > start for first, last in ranges)
        )
        return json.dumps(active) if active else None

    def join(self, before: bytes | None, block_hash: bytes, edits: str | None) -> bytes | None:
        """Digest of a block, the edits in it and the digest before it; None as long as nothing was edited."""
        if before is None and edits is None:
            return None
        parts = (self._secret, before or b"", block_hash, (edits or "").encode())
        return hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in parts)).digest()


def steered_hasher(hasher: Hasher, edited: EditedBlocks, block_size: int) -> Hasher:
    """
    Wrap vLLM's hasher for one steered request.

    hasher:     vLLM's own, which reads the hashes so far off the request
    block_size: in tokens, of what is hashed
    """
    unsteered: list[bytes] = []
    digest: bytes | None = None

    def hash_blocks(request: Any) -> list[bytes]:
        nonlocal digest
        new = hasher(_Unsteered(request, unsteered))
        steered = []
        for block_hash in new:
            start = len(unsteered) * block_size
            digest = edited.join(digest, block_hash, edited.within(start, start + block_size))
            unsteered.append(block_hash)
            steered.append(digest or block_hash)
        return steered

    return hash_blocks


class _Unsteered:
    """A request as vLLM's hasher would see it without steering."""

    def __init__(self, request: Any, block_hashes: Sequence[bytes]) -> None:
        self._request = request
        self.block_hashes = block_hashes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)
