"""
Features that this server steers with: what is known of them, for those who look for one, and what the model makes of them.

    router.py            the endpoints
    sae_info.py          one SAE: its feature book, its labels, its calibration curves; as the wire shows them
    served_saes.py       loading these at the start
    description.py       a feature in words, the same wherever it is named
    search_documents.py  what features are found by, and what a hit shows
    search.py            two rankings made into one: full_text_index.py by words, embedding_index.py by sentence embeddings
    text_activations.py  what is active in texts; activation_table.py counts it over many
    inspect.py contrast.py attribute.py neighbours.py derive.py   an endpoint each; permutation_test.py says how surely,
                         attribution_effects.py what features do that are taken away
    suggest/             from a wish to a steering
"""

from saeclamp_server.api.features.search import FeatureSearch
from saeclamp_server.api.features.served_saes import load_served_saes

__all__ = ["FeatureSearch", "load_served_saes"]
