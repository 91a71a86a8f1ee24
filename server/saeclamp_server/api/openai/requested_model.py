"""The model that a request names: the base model, or a variant of it, whose steering is added to the request's own."""

from __future__ import annotations

from dataclasses import dataclass

from vllm import envs

from saeclamp.types import Steering
from saeclamp_server.api.state import AppState
from saeclamp_server.steering import ResolvedSteering, resolve, roles_used, vectors_used
from saeclamp_server.steering.chat_spans import ChatSpans
from saeclamp_server.variants.version import VariantVersion


@dataclass(frozen=True)
class RequestedModel:
    """A name, and the steering that comes with it."""

    name: str | None
    own: Steering | None
    """The request's own steering."""
    variant: VariantVersion | None = None

    @classmethod
    async def find(cls, state: AppState, name: str | None, own: Steering | None) -> RequestedModel:
        """Look a name up. Raises RequestError where neither a model nor a variant has it."""
        variants = state.variants
        variant = await variants.of_model(name) if name else None
        if name and variant is None:
            adapters = state.vllm.openai_serving_models.lora_requests
            await variants.refuse_unknown(name, adapters, allows_any=envs.VLLM_SKIP_MODEL_NAME_VALIDATION)
        return cls(name, own, variant)

    @property
    def steers(self) -> bool:
        """True if there is any steering."""
        return self.own is not None or self.variant is not None

    @property
    def base(self) -> str | None:
        """The model's name, as vLLM knows it."""
        return self.variant.base if self.variant else self.name

    def roles(self, state: AppState) -> set[str]:
        """Collect the roles by which tokens are chosen. Raises RequestError."""
        return roles_used(self.own) | roles_used(self._of_variant(state))

    def vectors(self, state: AppState) -> set[str]:
        """Collect the names of the vectors that are moved. Raises RequestError."""
        return vectors_used(self.own) | vectors_used(self._of_variant(state))

    def _of_variant(self, state: AppState) -> Steering | None:
        return state.variants.steering(self.variant) if self.variant else None

    def resolved(self, state: AppState, conversation: ChatSpans | None) -> ResolvedSteering:
        """Join both steerings, and resolve them. Raises RequestError. Something must steer."""
        if self.variant is not None:
            return state.variants.resolved(self.variant, self.own, conversation)
        assert self.own is not None, "it steers"
        return resolve(self.own, state.context, conversation)
