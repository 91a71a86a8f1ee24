"""
The wire: every field that saeclamp adds to an OpenAI request or response.

Requests are frozen and refuse unknown keys, so a misspelt field is an error and never an unsteered answer.
Receipts keep what they do not know, so that an older client can read a newer server.
"""

from saeclamp.types._base import (
    MAX_INTERVENTIONS,
    MAX_POSITIONS,
    MAX_READ,
    MAX_RULES,
    MAX_TESTS,
    MAX_VALUE,
    Unit,
    looks_like_steering,
)
from saeclamp.types.features import (
    Example,
    Label,
    LabelsInfo,
    Neighbour,
    StoredFeature,
    StoredSAE,
    TokenLogit,
)
from saeclamp.types.interventions import (
    Ablate,
    Add,
    AtLeast,
    AtMost,
    Clamp,
    Feature,
    FeatureIndex,
    Intervention,
    Operation,
    Scale,
)
from saeclamp.types.receipts import (
    ChoiceReadout,
    Fired,
    InterventionReceipt,
    Receipt,
    Summary,
    TokenCounts,
    TokenEdit,
    TokenReadout,
    TopFeature,
)
from saeclamp.types.rules import CONDITIONS, AllOf, AnyOf, Condition, FeatureCondition, Not, Rule, comparisons
from saeclamp.types.steering import Readout, ReceiptKind, Steering, as_steering, extra_body
from saeclamp.types.tokens import TOKEN_OBJECTS, After, First, Positions, Role, Roles, Tokens
from saeclamp.types.vectors import StoredVector

__all__ = [
    "MAX_INTERVENTIONS",
    "MAX_POSITIONS",
    "MAX_READ",
    "MAX_RULES",
    "MAX_TESTS",
    "MAX_VALUE",
    "Unit",
    "looks_like_steering",
    "Ablate",
    "Add",
    "AtLeast",
    "AtMost",
    "Clamp",
    "Feature",
    "FeatureIndex",
    "Intervention",
    "Operation",
    "Scale",
    "CONDITIONS",
    "AllOf",
    "AnyOf",
    "Condition",
    "FeatureCondition",
    "Not",
    "Rule",
    "comparisons",
    "TOKEN_OBJECTS",
    "After",
    "First",
    "Positions",
    "Role",
    "Roles",
    "Tokens",
    "Readout",
    "ReceiptKind",
    "Steering",
    "as_steering",
    "extra_body",
    "ChoiceReadout",
    "Fired",
    "InterventionReceipt",
    "Receipt",
    "Summary",
    "TokenCounts",
    "TokenEdit",
    "TokenReadout",
    "TopFeature",
    "StoredVector",
    "Example",
    "Label",
    "LabelsInfo",
    "Neighbour",
    "StoredFeature",
    "StoredSAE",
    "TokenLogit",
]
