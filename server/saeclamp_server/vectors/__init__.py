"""
Directions that users upload, and that requests move by name as they move features.

    vector_file.py  a safetensors file to a direction at a site, or a refusal
    sites.py        sites of this server's model that vectors can be added at
    storage.py      files of vectors, which outlast the server
    registry.py     the vectors that requests can name, each with a row of the engine's vector bank at its site

Free of vLLM: the engine is told by `collective_rpc`.
"""

from saeclamp_server.vectors.registry import RegisteredVector, VectorRegistry
from saeclamp_server.vectors.sites import VectorSite, vector_sites
from saeclamp_server.vectors.storage import VectorStorage, default_folder
from saeclamp_server.vectors.vector_file import MAX_BYTES, SteeringVector

__all__ = [
    "MAX_BYTES",
    "SteeringVector",
    "VectorSite",
    "RegisteredVector",
    "VectorStorage",
    "VectorRegistry",
    "default_folder",
    "vector_sites",
]
