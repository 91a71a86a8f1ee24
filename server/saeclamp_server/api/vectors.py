"""`/v1/vectors`: directions that users upload, list, look up and delete."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from saeclamp.types import DeletedVector, StoredVector, StoredVectors
from saeclamp_server.api.state import state_of
from saeclamp_server.api.strict_route import strict_router
from saeclamp_server.errors import InvalidVectorError, UnknownVectorError, VectorTooLargeError
from saeclamp_server.vectors import MAX_BYTES, VectorRegistry

router = strict_router()

CONTENT_TYPE = "application/octet-stream"
"""A type that a page in a browser cannot send to another site without being allowed to."""
UPLOAD: dict[str, Any] = {
    "requestBody": {"required": True, "content": {CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}}},
    "parameters": [{"name": "name", "in": "query", "required": True, "schema": {"type": "string"}}],
}
"""OpenAPI description of the upload, which FastAPI cannot tell from the function."""


@router.post(
    "/v1/vectors", openapi_extra=UPLOAD, responses={201: {"model": StoredVector, "description": "A new vector"}}
)
async def upload_vector(request: Request, response: Response) -> StoredVector:
    """Take the safetensors file in the body as the vector `?name=`. 201 if it is new, 200 if it was there."""
    name = _name(request)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != CONTENT_TYPE:
        raise InvalidVectorError(
            f"The body is a safetensors file, sent as it is with 'Content-Type: {CONTENT_TYPE}'.", "content-type"
        )
    vector, is_new = await _registry(request).upload(name, await _body(request))
    response.status_code = 201 if is_new else 200
    return vector.to_wire()


@router.get("/v1/vectors")
async def list_vectors(request: Request) -> StoredVectors:
    """List all vectors, and the sites at which they can sit."""
    vectors = _registry(request)
    await vectors.refresh()
    return StoredVectors(
        data=tuple(vector.to_wire() for _, vector in sorted(vectors.items())),
        sites=tuple(str(site) for site in vectors.places),
        max_vectors=next((place.capacity for place in vectors.places.values()), 0),
    )


@router.get("/v1/vectors/{name}")
async def get_vector(request: Request, name: str) -> StoredVector:
    """Look up one vector."""
    vectors = _registry(request)
    await vectors.refresh([name])
    if name not in vectors:
        raise UnknownVectorError(name, vectors, "name", status=404)
    return vectors[name].to_wire()


@router.delete("/v1/vectors/{name}")
async def delete_vector(request: Request, name: str) -> DeletedVector:
    """Delete a vector; requests that are running end as they began."""
    await _registry(request).delete(name)
    return DeletedVector(name=name, deleted=True)


def _registry(request: Request) -> VectorRegistry:
    return state_of(request.app).vectors


def _name(request: Request) -> str:
    parameters = request.query_params.multi_items()
    if [key for key, _ in parameters] != ["name"]:
        raise InvalidVectorError("The vector's name is given once, as in POST /v1/vectors?name=my-vector.", "name")
    return parameters[0][1]


async def _body(request: Request) -> bytes:
    """Read the body. What is too large is read to its end, or the refusal might not arrive, and not kept."""
    body = bytearray()
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BYTES:
            body += chunk
    if size > MAX_BYTES:
        raise VectorTooLargeError(f"The file has {size} bytes; at most {MAX_BYTES} are taken.", "body")
    return bytes(body)
