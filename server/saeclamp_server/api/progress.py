"""Progress of a request's work, for whoever wants to know. Free of vLLM."""

from __future__ import annotations

from saeclamp.types import Progress


class ProgressCounter:
    """Counts the steps of what is being done: tokens that are generated, texts that are read, parts that are computed."""

    def __init__(self) -> None:
        self.now = Progress(what="waiting", done=0, of=0)
        self._num_expected = 0

    def begin(self, what: str, of: int = 0) -> None:
        """
        Count something else from now on.

        of: steps, as far as they are known; where more are expected it grows
        """
        self.now = Progress(what=what, done=0, of=of)
        self._num_expected = 0

    def expect(self, num_steps: int) -> None:
        """Learn of steps to come, which may be among those that were announced."""
        self._num_expected += num_steps
        self._set(self.now.done, max(self.now.of, self._num_expected))

    def step(self, num_steps: int = 1) -> None:
        """Learn of steps that were made."""
        self._set(self.now.done + num_steps, self.now.of)

    def _set(self, done: int, of: int) -> None:
        # what was begun earlier may end while something else is counted
        self.now = Progress(what=self.now.what, done=min(done, of), of=of)
