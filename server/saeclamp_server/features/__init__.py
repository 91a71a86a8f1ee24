"""
What is known of the features that this server steers with, for those who look for one.

    known.py   one SAE: its feature book, its labels, its calibration curves; as the wire shows them
    beside.py  which of these lie beside an SAE
"""

from saeclamp_server.features.beside import known_saes
from saeclamp_server.features.known import KnownSAE

__all__ = ["KnownSAE", "known_saes"]
