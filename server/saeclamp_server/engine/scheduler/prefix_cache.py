"""
EngineCore process: hashes of steered requests' KV blocks, equal for those that were computed under the same edits.

A block's keys and values depend on its tokens, on the tokens before it, and on the edits at all those positions. vLLM
hashes the tokens; here each hash is joined with the edits up to the end of its block. Blocks before the first edit keep
vLLM's own hash, so steering what is generated leaves the prompt's blocks shared with everybody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from saeclamp_server.steering.program import EditSpec, SteeringProgram, rule_to_json
from saeclamp_server.steering.token_ranges import NO_END, resolve_ranges

Hasher: TypeAlias = Callable[[Any], list[bytes]]
"""vLLM's function from a request to the hashes of its full blocks that are not in `block_hashes` yet."""


class BlockEdits:
    """One request's edits, block by block."""

    def __init__(self, program: SteeringProgram, prompt_len: int, secret: bytes) -> None:
        """`secret` is this engine's: users see specs, and could otherwise write a `cache_salt` that meets a block's hash."""
        self._edits = [_edit(edit, program, prompt_len) for edit in program.edits]
        self._secret = secret

    def within(self, start: int, end: int) -> str | None:
        """Describe the edits at positions `start` to before `end`, equal for equal edits; None where there are none."""
        # sorted, as edits are added up and their order does not matter; cut to the block, so that requests which differ
        # behind it share it
        active = sorted(
            (*edit, [(max(first, start), min(last, end)) for first, last in ranges if first < end and last > start])
            for edit, ranges in self._edits
            if any(first < end and last > start for first, last in ranges)
        )
        return json.dumps(active) if active else None

    def join(self, before: bytes | None, block_hash: bytes, edits: str | None) -> bytes | None:
        """Hash a block, the edits in it and the digest before it; None as long as nothing has been edited."""
        if before is None and edits is None:
            return None
        parts = (self._secret, before or b"", block_hash, (edits or "").encode())
        # each part behind its length, so that no two lists of parts make the same bytes
        return hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in parts)).digest()


def _edit(edit: EditSpec, program: SteeringProgram, prompt_len: int) -> tuple[tuple[Any, ...], list[tuple[int, int]]]:
    """
    Return an edit's effect, as plain values to be hashed, and the ranges of positions whose keys and values depend on it.

    A rule's edit also depends on the activations that the rule has read before, so it counts from the first of these on.
    """
    weights = dict(program.saes)
    # by the weights' hash, not by the SAE's name: equal weights under two names do the same
    what = (weights[edit.sae], edit.index, edit.op, edit.value, edit.special)
    ranges = resolve_ranges(edit.tokens, prompt_len)
    if edit.rule is None:
        return (*what, ""), ranges
    rule = program.rules[edit.rule]
    looked_at = resolve_ranges(rule.tokens, prompt_len)
    condition = {"rule": rule_to_json(rule), "weights": [weights[comparison.sae] for comparison in rule.comparisons]}
    first = min([start for start, _ in looked_at], default=NO_END)
    return (*what, json.dumps([condition, ranges, looked_at])), [(first, NO_END)] if first < NO_END else []


def steering_block_hasher(hasher: Hasher, edited: BlockEdits, block_size: int, unsteered: list[bytes]) -> Hasher:
    """
    Wrap vLLM's hasher for one steered request.

    hasher:     vLLM's own, which reads the hashes so far off the request
    block_size: tokens of a hashed block
    unsteered:  vLLM's hashes so far, without edits; extended here, because vLLM chains each hash to the one before
    """
    digest: bytes | None = None

    def hash_blocks(request: Any) -> list[bytes]:
        nonlocal digest
        unsteered.extend(hasher(_Unsteered(request, unsteered)))
        # vLLM appends what is returned to the request's hashes, so these say how many it has
        first, steered = len(request.block_hashes), []
        for number, block_hash in enumerate(unsteered[first:], first):
            digest = edited.join(digest, block_hash, edited.within(number * block_size, (number + 1) * block_size))
            steered.append(digest or block_hash)
        return steered

    return hash_blocks


class _Unsteered:
    """View of a request with vLLM's own hashes, for vLLM's hasher."""

    def __init__(self, request: Any, block_hashes: Sequence[bytes]) -> None:
        self._request = request
        self.block_hashes = block_hashes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)
