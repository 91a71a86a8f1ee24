"""
Directions that users upload, and that requests move by name as they move features.

    vector_file.py  a safetensors file to a direction at a site, or a refusal
    sites.py        where vectors can sit in this server's model
    storage.py      files that outlast the server
    registry.py     the vectors that requests can name, each with a row of the engine's

Free of vLLM: the engine is told by `collective_rpc`.
"""

from saeclamp_server.vectors.registry import Vector, Vectors
from saeclamp_server.vectors.sites import Place, find_places
from saeclamp_server.vectors.storage import VectorFolder, default_folder
from saeclamp_server.vectors.vector_file import MAX_BYTES, Direction

__all__ = ["MAX_BYTES", "Direction", "Place", "Vector", "VectorFolder", "Vectors", "default_folder", "find_places"]
