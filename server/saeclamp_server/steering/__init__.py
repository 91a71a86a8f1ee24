"""
From the wire to a program, and from what the engine did to a receipt.

    context.py       the steering context: loaded SAEs, uploaded vectors, norms
    units.py         names to features and vectors, units to activations
    dose.py          norm of an edit as a share of the residual stream's, and the server's bound
    chat_spans.py    spans of a chat's messages in its prompt
    token_ranges.py  token choices as ranges of positions
    resolve.py       a whole `steering` object, its interventions and its contradictions
    rules.py         rules and readouts
    program.py       the resolved program: JSON on its way to the worker
    admission.py     waiting while too many features are in use
    receipt.py       the receipt: steering as it was resolved and applied
    warnings.py      sentences on steering that is probably not what was meant

What cannot be applied ends the request here.
"""

from saeclamp_server.steering.context import SteeringContext
from saeclamp_server.steering.receipt import build_receipt
from saeclamp_server.steering.resolve import ResolvedSteering, add_sae_hashes, resolve, roles_used, vectors_used
from saeclamp_server.steering.units import check_sae_names, find_feature
from saeclamp_server.steering.warnings import possible_dose, warnings_before

__all__ = [
    "ResolvedSteering",
    "SteeringContext",
    "find_feature",
    "check_sae_names",
    "possible_dose",
    "build_receipt",
    "resolve",
    "roles_used",
    "vectors_used",
    "warnings_before",
    "add_sae_hashes",
]
