"""
From the wire to a program, and from what the engine did to a receipt.

    served.py      what this server steers with
    targets.py     names to features and vectors, units to activations
    resolve.py     a whole `steering` object, its interventions and its contradictions
    conditions.py  rules and readouts
    receipt.py     what was resolved and applied
    warnings.py    what of it is probably not what was meant

What cannot be applied ends the request here.
"""

from saeclamp_server.steering.context import Served
from saeclamp_server.steering.receipt import receipt
from saeclamp_server.steering.resolve import ResolvedSteering, resolve, roles_in, with_hashes
from saeclamp_server.steering.units import find, known_saes_named
from saeclamp_server.steering.warnings import possible_dose, warnings_before

__all__ = [
    "ResolvedSteering",
    "Served",
    "find",
    "known_saes_named",
    "possible_dose",
    "receipt",
    "resolve",
    "roles_in",
    "warnings_before",
    "with_hashes",
]
