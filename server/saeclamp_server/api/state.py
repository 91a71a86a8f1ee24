"""State that the endpoints of one server share: built once, after the engine has been found to steer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # endpoints import this module; the state holds what they make
    from saeclamp.types import ServerIdentity
    from saeclamp_server.api.drain import Drain
    from saeclamp_server.api.features import FeatureSearch
    from saeclamp_server.api.features.derive import PromptMeans
    from saeclamp_server.api.model_client import DecoderQueries
    from saeclamp_server.api.model_share import CellBudget
    from saeclamp_server.api.openai.sequence_tracker import SequenceTracker
    from saeclamp_server.api.openai.vllm_model_client import VLLMModelClient
    from saeclamp_server.database.watch import DatabaseWatch
    from saeclamp_server.engine.client import ReportFetcher
    from saeclamp_server.steering import SteeringContext
    from saeclamp_server.steering.admission import Admission
    from saeclamp_server.trace import Trace
    from saeclamp_server.variants import VariantRegistry
    from saeclamp_server.vectors import VectorRegistry


@dataclass(frozen=True)
class CallServices:
    """Services that every steered call needs, also those of our own endpoints: from waiting for its turn to its receipt."""

    context: SteeringContext
    admission: Admission
    sequences: SequenceTracker
    reports: ReportFetcher
    trace: Trace | None
    model_name: str
    """Name of the base model, as receipts have it."""
    server: ServerIdentity


@dataclass(frozen=True)
class AppState:
    """Everything that requests meet, under one name in the app's state, beside what vLLM keeps there."""

    calls: CallServices
    search: FeatureSearch
    variants: VariantRegistry
    vectors: VectorRegistry
    model: VLLMModelClient
    decoder: DecoderQueries
    prompt_means: PromptMeans
    cells: CellBudget
    """Shared by all requests of our own endpoints, so that none of them fills the engine's answers alone."""
    drain: Drain
    database: DatabaseWatch
    vllm: Any
    """vLLM's own state of the app, which has no type: its models, its adapters, its renderers."""

    @property
    def context(self) -> SteeringContext:
        """The served SAEs, the uploaded vectors, and what values are measured by."""
        return self.calls.context


def state_of(app: Any) -> AppState:
    """Look up the state of an app, as requests and ASGI scopes have it. Raises AttributeError before it is built."""
    state: AppState = app.state.saeclamp
    return state
