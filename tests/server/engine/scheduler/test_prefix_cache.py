"""Two requests share a block exactly if their tokens and their edits are equal up to its end."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.oracles.reference import touched_positions
from tests.support.token_ranges import SCOPES

from saeclamp_server.engine.scheduler.prefix_cache import BlockEdits, steering_block_hasher
from saeclamp_server.steering.program import EditSpec, SteeringProgram
from saeclamp_server.steering.token_ranges import GENERATED

BLOCK = 4
SECRET = b"secret"


class Request:
    """What vLLM's hasher reads of a request."""

    def __init__(self, prompt: list[int], edits: list[EditSpec] | None, secret: bytes = SECRET) -> None:
        self.all_token_ids = list(prompt)
        self.block_hashes: list[bytes] = []
        self.hasher = vllm_hasher
        self.block_hashes.extend(self.hasher(self))
        if edits is not None:  # when the scheduler gets it, vLLM has hashed the prompt
            program = SteeringProgram(tuple(edits), (("a", "sha"), ("b", "sha-b")))
            unsteered, self.block_hashes = self.block_hashes, []
            self.hasher = steering_block_hasher(vllm_hasher, BlockEdits(program, len(prompt), secret), BLOCK, unsteered)
            self.block_hashes.extend(self.hasher(self))

    def append(self, tokens: list[int]) -> None:
        for token in tokens:
            self.all_token_ids.append(token)
            self.block_hashes.extend(self.hasher(self))


def vllm_hasher(request: Any) -> list[bytes]:
    """Chain the hashes of blocks, as vLLM does."""
    hashes = list(request.block_hashes)
    known = len(hashes)
    while (len(hashes) + 1) * BLOCK <= len(request.all_token_ids):
        tokens = request.all_token_ids[len(hashes) * BLOCK : (len(hashes) + 1) * BLOCK]
        hashes.append(hashlib.sha256((hashes[-1] if hashes else b"") + json.dumps(tokens).encode()).digest())
    return hashes[known:]


texts = st.lists(st.integers(0, 1), max_size=20)
edits = st.builds(
    lambda index, value, scope, special: (EditSpec("a", index, "clamp", value, SCOPES[scope][1], special), scope),
    st.integers(0, 1),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from(sorted(SCOPES)),
    st.booleans(),
)
requests = st.tuples(texts.filter(len), texts, st.none() | st.lists(edits, min_size=1, max_size=2))


def what_made_each_block(
    prompt: list[int], generated: list[int], moved: list[tuple[EditSpec, str]] | None
) -> list[str]:
    """The slow twin: every token and every edit of every position up to a block's end."""
    num_tokens = len(prompt) + len(generated)
    done = [
        sorted(
            str((edit.index, edit.value, edit.special))
            for edit, scope in moved or []
            if position in touched_positions(num_tokens, len(prompt), SCOPES[scope][0], special=True)
        )
        for position in range(num_tokens)
    ]
    tokens = [*prompt, *generated]
    return [str([*zip(tokens[:end], done[:end], strict=True)]) for end in range(BLOCK, num_tokens + 1, BLOCK)]


@given(one=requests, other=requests)
def test_hashes_are_equal_exactly_where_everything_before_is(one: Any, other: Any) -> None:
    hashes, made = [], []
    for prompt, generated, moved in (one, other):
        request = Request(prompt, None if moved is None else [edit for edit, _ in moved])
        request.append(generated)
        hashes.append(request.block_hashes)
        made.append(what_made_each_block(prompt, generated, moved))
        assert len(hashes[-1]) == len(made[-1])
    for number in range(min(map(len, hashes))):
        assert (hashes[0][number] == hashes[1][number]) == (made[0][number] == made[1][number])


@given(request=requests, cut=st.integers(0, 20))
def test_it_makes_no_difference_how_many_blocks_are_hashed_at_once(request: Any, cut: int) -> None:
    prompt, generated, moved = request
    scoped = [EditSpec("a", number, "clamp", 1.0, ((2, 30),)) for number, _ in enumerate(moved or [])]
    at_once = Request([*prompt, *generated], scoped)
    in_parts = Request([*prompt, *generated[:cut]], scoped)
    in_parts.append(generated[cut:])
    assert in_parts.block_hashes == at_once.block_hashes


def test_an_unedited_prompt_keeps_vllms_hashes_and_the_secret_keeps_the_others_apart() -> None:
    prompt, generated = [1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3]
    steered = [EditSpec("a", 1, "clamp", 1.0, GENERATED)]
    plain, one, other = Request(prompt, None), Request(prompt, steered), Request(prompt, steered, b"another")
    for request in (plain, one, other):
        request.append(generated)
    assert one.block_hashes[:2] == other.block_hashes[:2] == plain.block_hashes[:2]
    assert len({request.block_hashes[2] for request in (plain, one, other)}) == 3


def test_weights_tell_edits_apart_and_names_do_not() -> None:
    edit = EditSpec("a", 1, "clamp", 1.0)
    renamed = EditSpec("z", 1, "clamp", 1.0)
    keys = [
        BlockEdits(SteeringProgram((move,), ((move.sae, sha256),)), 4, SECRET).within(0, 4)
        for move, sha256 in ((edit, "sha"), (renamed, "sha"), (edit, "other"))
    ]
    assert keys[0] == keys[1] != keys[2]
