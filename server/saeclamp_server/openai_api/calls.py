"""One steered API call, from its `steering` object to its receipt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saeclamp.types import Receipt, Steering
from saeclamp_server.conversation import Conversation
from saeclamp_server.steering import ResolvedSteering, receipt, resolve


@dataclass(frozen=True)
class SteeredCall:
    """What must be known to say whether a steered answer may leave."""

    app_state: Any
    """vLLM's app state, plus `served`: Served."""
    resolved: ResolvedSteering
    key: str
    """Names this call's sequences to the engine."""
    num_sequences: int

    @classmethod
    def begin(
        cls, app_state: Any, steering: Steering, conversation: Conversation | None, key: str, num_sequences: int
    ) -> SteeredCall:
        """Resolve the steering. Raises RequestError."""
        return cls(app_state, resolve(steering, app_state.served, conversation), key, num_sequences)

    @property
    def wants_receipt(self) -> bool:
        """Whether the receipt is to be sent; it is checked in any case."""
        return self.resolved.steering.receipt != "none"

    async def receipt(self) -> Receipt:
        """Ask the engine what it did. Raises NotAppliedError unless every sequence was steered."""
        reports = await self.app_state.engine_client.collective_rpc("steering_reports", args=(self.key,))
        served_name = self.app_state.openai_serving_models.base_model_paths[0].name
        # every worker of a tensor-parallel group makes the same edits
        return receipt(self.resolved, reports[0], self.num_sequences, self.app_state.served, served_name)
