"""
The model as one request of our own endpoints may use it: so many sequences at once, each counted.

What the engine says of a sequence (activations, likelihoods) is held in this process until it has been summed up, so all of
these requests together run only as many sequences as there is room for what they will say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from saeclamp_server.api.model_client import GenerateRequest, GenerateResult, ModelClient, Prompt
from saeclamp_server.api.progress import ProgressCounter
from saeclamp_server.steering.chat_spans import Message

NUM_AT_ONCE = 64
"""Sequences of one request in the engine: others want their turn too."""
MAX_CELLS = 1 << 22
"""Numbers that the engine says of all sequences in it for these requests; about 12 bytes each."""


class CellBudget:
    """Lets in whoever fits, in the order in which they came. For one event loop."""

    def __init__(self, num_cells: int = MAX_CELLS) -> None:
        self._capacity = self._num_free = num_cells
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, num_cells: int) -> AsyncIterator[None]:
        """Wait until there is room, and take it. What would never fit has all of it."""
        num_cells = min(num_cells, self._capacity)
        await self._enter(num_cells)
        try:
            yield
        finally:
            self._leave(num_cells)

    async def _enter(self, num_cells: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        entry = (num_cells, turn)
        self._waiting.append(entry)
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._let_in()  # those behind it may fit
            elif not turn.cancelled():  # let in and cancelled before it went on, so nobody else will give it back
                self._leave(num_cells)
            raise

    def _leave(self, num_cells: int) -> None:
        self._num_free += num_cells
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._num_free:
            num_cells, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._num_free -= num_cells
                turn.set_result(None)


class ModelShare:
    """A `model_client.ModelClient`, for one request."""

    def __init__(self, model: ModelClient, room: CellBudget, counter: ProgressCounter) -> None:
        self.name, self.num_tokens = model.name, model.num_tokens
        self._model, self._room, self._counter = model, room, counter
        self._turn = asyncio.Semaphore(NUM_AT_ONCE)

    async def from_text(self, text: str, path: str) -> Prompt:
        """Tokenise a text. Raises RequestError."""
        return await self._model.from_text(text, path)

    async def from_messages(self, messages: Sequence[Message], path: str, answers: bool = False) -> Prompt:
        """Render a conversation. Raises RequestError."""
        return await self._model.from_messages(messages, path, answers)

    def token_ids(self, text: str) -> list[int]:
        """Tokenise a piece of text as it stands."""
        return self._model.token_ids(text)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token."""
        return self._model.token_texts(ids)

    def token_bytes(self, ids: Sequence[int]) -> list[tuple[int, ...] | None]:
        """Return the bytes of each token that is a part of a character; None for others."""
        return self._model.token_bytes(ids)

    async def run(self, run: GenerateRequest, path: str, heard: Callable[[int], None] | None = None) -> GenerateResult:
        """Run one sequence when it is its turn. Raises RequestError."""
        num_heard, num_steps = 0, run.max_tokens

        def step_to(num: int) -> None:
            nonlocal num_heard
            num = min(num, num_steps)
            self._counter.step(num - num_heard)
            num_heard = num
            if heard is not None:
                heard(num)

        self._counter.expect(num_steps)
        async with self._turn, self._room.taken(run.num_cells):
            outcome = await self._model.run(run, path, step_to)
        step_to(num_steps)  # it may have ended early
        return outcome
