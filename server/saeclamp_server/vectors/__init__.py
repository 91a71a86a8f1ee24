"""
Directions that users upload, and that requests move by name as they move features.

    direction.py  a safetensors file to a direction at a site, or a refusal
    places.py     where vectors can sit in this server's model
    folder.py     files that outlast the server
    held.py       the vectors that requests can name, each with a row of the engine's

Free of vLLM: the engine is told by `collective_rpc`.
"""

from saeclamp_server.vectors.direction import MAX_BYTES, Direction
from saeclamp_server.vectors.folder import VectorFolder, default_folder
from saeclamp_server.vectors.held import Vector, Vectors
from saeclamp_server.vectors.places import Place, find_places

__all__ = ["MAX_BYTES", "Direction", "Place", "Vector", "VectorFolder", "Vectors", "default_folder", "find_places"]
