"""
Directions that users upload, and that requests move by name as they move features.

    vector_file.py  a safetensors file to a direction at a site, or a refusal
    sites.py        sites of this server's model that vectors can be added at
    store.py        vectors in the database, which outlast the server and are those of all servers of a model
    folder.py       the folder in which they lay before: it is taken over once
    registry.py     the vectors that requests can name, each with a row of the engine's vector bank at its site

Free of vLLM: the engine is told by `collective_rpc`.
"""

from saeclamp_server.vectors.folder import VectorFolder, default_folder
from saeclamp_server.vectors.registry import RegisteredVector, VectorRegistry
from saeclamp_server.vectors.sites import VectorSite, vector_sites
from saeclamp_server.vectors.store import VectorStore
from saeclamp_server.vectors.vector_file import MAX_BYTES, SteeringVector

__all__ = [
    "MAX_BYTES",
    "SteeringVector",
    "VectorSite",
    "RegisteredVector",
    "VectorFolder",
    "VectorStore",
    "VectorRegistry",
    "default_folder",
    "vector_sites",
]
