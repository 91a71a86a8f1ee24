"""
What is known of the features that this server steers with, for those who look for one.

    known.py        one SAE: its feature book, its labels, its calibration curves; as the wire shows them
    beside.py       which of these lie beside an SAE
    description.py  a feature in words, the same wherever it is named
    findable.py     what features are found by, and what a hit shows
    search.py       both rankings made into one: words.py by words, meanings.py by sentence embeddings
"""

from saeclamp_server.api.features.labels import known_saes
from saeclamp_server.api.features.sae_info import KnownSAE
from saeclamp_server.api.features.search import FeatureSearch

__all__ = ["FeatureSearch", "KnownSAE", "known_saes"]
