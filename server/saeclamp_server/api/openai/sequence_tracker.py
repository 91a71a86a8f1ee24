"""
The engine's sequences by call, and the readouts that have arrived of each.

The engine names sequences its own way, and what was read arrives with the tokens. Both are seen where vLLM's output
processor takes a request and an output, in this process; nothing is asked for step by step.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saeclamp_server.api.model_client import TokenActivations
from saeclamp_server.steering.program import EXTRA_ARGS_KEY


class Strongest(Sequence[tuple[int, float]]):
    """
    Index and activation of a token's strongest features, kept flat until they are looked at.

    As the engine's lists they would take ten times as much memory, and a long prompt has many.
    """

    def __init__(self, rows: Iterable[Sequence[Any]]) -> None:
        self._indices, self._acts = array("i"), array("d")
        for index, act in rows:
            self._indices.append(index)
            self._acts.append(act)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [*zip(self._indices[number], self._acts[number], strict=True)]
        return self._indices[number], self._acts[number]

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self._indices, self._acts, strict=True)


@dataclass
class TrackedSequence:
    """One choice of a call."""

    prompt_ids: Sequence[int]
    readings: dict[int, TokenActivations] = field(default_factory=dict)
    """Position to activations and edits there, as far as they have arrived."""


@dataclass
class _TrackedCall:
    num_per_prompt: int
    sequences: dict[int, TrackedSequence] = field(default_factory=dict)
    """Number of a choice to its sequence."""
    choices: dict[str, int] = field(default_factory=dict)
    """The engine's request id to the number of the choice."""


class SequenceTracker:
    """Sequences of the calls that are being answered."""

    def __init__(self) -> None:
        self._calls: dict[str, _TrackedCall] = {}
        self._of: dict[str, tuple[str, int]] = {}

    def listen(self, output_processor: Any) -> None:
        """Hook into vLLM's output processor, to see each request and each output that it takes."""
        add_request, process_outputs = output_processor.add_request, output_processor.process_outputs

        def add(
            request: Any, prompt: Any, parent_req: Any = None, request_index: int = 0, *args: Any, **kwargs: Any
        ) -> Any:
            params = request.sampling_params
            if params is not None and params.extra_args and EXTRA_ARGS_KEY in params.extra_args:
                payload = params.extra_args[EXTRA_ARGS_KEY]
                self._add(payload, request.request_id, request_index, request.prompt_token_ids or [])
            return add_request(request, prompt, parent_req, request_index, *args, **kwargs)

        def process(outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            for output in outputs:
                if output.kv_transfer_params and EXTRA_ARGS_KEY in output.kv_transfer_params:
                    self._take(output)
            return process_outputs(outputs, *args, **kwargs)

        output_processor.add_request, output_processor.process_outputs = add, process

    def begin(self, key: str, num_per_prompt: int) -> None:
        """Await the sequences of a call."""
        self._calls[key] = _TrackedCall(num_per_prompt)

    def end(self, key: str) -> bool:
        """Forget a call; False where it was forgotten before."""
        call = self._calls.pop(key, None)
        for request_id in call.choices if call else ():
            del self._of[request_id]
        return call is not None

    def choices(self, key: str) -> Mapping[str, int]:
        """Return the number of each choice, by the engine's request id."""
        return self._calls[key].choices

    def sequence(self, key: str, choice: int) -> TrackedSequence:
        """Return one choice of a call. Raises KeyError for one that the engine never had."""
        return self._calls[key].sequences[choice]

    def _add(self, payload: Mapping[str, Any], request_id: str, index: int, prompt_ids: Sequence[int]) -> None:
        call = self._calls.get(payload["key"])
        if call is None:  # it was given up before it began, or is the self-test's
            return
        choice = payload["prompt"] * call.num_per_prompt + index
        call.choices[request_id] = choice
        call.sequences[choice] = TrackedSequence(prompt_ids)
        self._of[request_id] = payload["key"], choice

    def _take(self, output: Any) -> None:
        params = {**output.kv_transfer_params}
        readings = params.pop(EXTRA_ARGS_KEY)
        # readouts only ride in this field: vLLM's own code, and its answer, must find no more than is theirs
        output.kv_transfer_params = params or None
        if output.request_id not in self._of:  # its call has ended meanwhile
            return
        key, choice = self._of[output.request_id]
        sequence = self._calls[key].sequences[choice]
        for number, position in enumerate(readings["positions"]):
            top = {sae: rows[number] and Strongest(rows[number]) for sae, rows in readings["top"].items()}
            sequence.readings[position] = TokenActivations(readings["acts"][number], top, readings["edits"][number])
