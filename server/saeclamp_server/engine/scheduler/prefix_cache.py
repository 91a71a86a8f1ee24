"""
EngineCore process: which blocks of the prefix cache steered requests may share: those that were computed under the
same edits.

A block's keys and values depend on its tokens, on the tokens before it, and on what was edited at all those positions. vLLM
hashes the tokens; here each hash is joined with the edits up to the end of its block. Blocks before the first edit keep
vLLM's own hash, so that steering what is generated leaves the prompt's blocks shared with everybody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from saeclamp_server.steering.program import EditSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import NO_END, resolve_ranges

Hasher: TypeAlias = Callable[[Any], list[bytes]]
"""vLLM's: from a request to the hashes of its full blocks that are not in `block_hashes` yet."""


class BlockEdits:
    """A program's edits, block by block, of one request."""

    def __init__(self, program: SteeringProgram, prompt_len: int, secret: bytes) -> None:
        """`secret` is this engine's: users see specs, and could otherwise write a salt that meets a block's hash."""
        self._edits = [_edit(edit, program, prompt_len) for edit in program.edits]
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


def _edit(edit: EditSpec, program: SteeringProgram, prompt_len: int) -> tuple[tuple[Any, ...], list[tuple[int, int]]]:
    """
    What an edit does, and at which positions it matters.

    One that a rule decides also depends on what the rule has looked at before, so it counts from there on.
    """
    weights = dict(program.saes)
    what = (weights[edit.sae], edit.index, edit.op, edit.value, edit.special)
    ranges = resolve_ranges(edit.tokens, prompt_len)
    if edit.rule is None:
        return (*what, ""), ranges
    rule = program.rules[edit.rule]
    looked_at = resolve_ranges(rule.tokens, prompt_len)
    condition = {"rule": asdict(rule), "weights": [weights[comparison.sae] for comparison in rule.comparisons]}
    first = min([start for start, _ in looked_at], default=NO_END)
    return (*what, json.dumps([condition, ranges, looked_at])), [(first, NO_END)] if first < NO_END else []


def steering_block_hasher(hasher: Hasher, edited: BlockEdits, block_size: int, unsteered: list[bytes]) -> Hasher:
    """
    Wrap vLLM's hasher for one steered request.

    hasher:     vLLM's own, which reads the hashes so far off the request
    block_size: in tokens, of what is hashed
    unsteered:  vLLM's hashes so far, which are gone on with
    """
    digest: bytes | None = None

    def hash_blocks(request: Any) -> list[bytes]:
        nonlocal digest
        unsteered.extend(hasher(_Unsteered(request, unsteered)))
        first, steered = len(request.block_hashes), []
        for number, block_hash in enumerate(unsteered[first:], first):
            digest = edited.join(digest, block_hash, edited.within(number * block_size, (number + 1) * block_size))
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
