"""
Clamp sparse-autoencoder features of a language model, per request.

>>> from saeclamp import Clamp, Client
>>> client = Client()                                                           # doctest: +SKIP
>>> answer = client.chat.completions.create(                                    # doctest: +SKIP
...     messages=[{"role": "user", "content": "What are you?"}],
...     steering=Clamp(feature="bundled/golden-gate", value=0.75),
... )
"""

from saeclamp._client import AsyncClient, Client
from saeclamp._exceptions import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    NotSteeredError,
    PermissionDeniedError,
    RateLimitError,
    SaeclampError,
    StreamError,
    UnprocessableEntityError,
)
from saeclamp._responses import ChatCompletion, ChatCompletionChunk, Completion, Model, ModelList
from saeclamp._streaming import AsyncStream, Stream
from saeclamp._version import __version__
from saeclamp.types import (
    Ablate,
    Add,
    After,
    AllOf,
    AnyOf,
    AtLeast,
    AtMost,
    Clamp,
    FeatureCondition,
    FeatureIndex,
    First,
    Not,
    Positions,
    Readout,
    Receipt,
    Roles,
    Rule,
    Scale,
    Steering,
    extra_body,
)

__all__ = [
    "__version__",
    "Client",
    "AsyncClient",
    "Stream",
    "AsyncStream",
    "ChatCompletion",
    "ChatCompletionChunk",
    "Completion",
    "Model",
    "ModelList",
    "Steering",
    "Clamp",
    "Add",
    "AtLeast",
    "AtMost",
    "Scale",
    "Ablate",
    "FeatureIndex",
    "Rule",
    "FeatureCondition",
    "AllOf",
    "AnyOf",
    "Not",
    "Readout",
    "First",
    "After",
    "Roles",
    "Positions",
    "Receipt",
    "extra_body",
    "SaeclampError",
    "APIConnectionError",
    "APITimeoutError",
    "APIStatusError",
    "BadRequestError",
    "AuthenticationError",
    "PermissionDeniedError",
    "NotFoundError",
    "UnprocessableEntityError",
    "RateLimitError",
    "InternalServerError",
    "APIResponseValidationError",
    "StreamError",
    "NotSteeredError",
]
