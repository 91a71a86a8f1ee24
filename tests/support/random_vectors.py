"""Random vectors, and their upload to a running server."""

from __future__ import annotations

from typing import NamedTuple

import httpx
import torch
from safetensors.torch import save
from tests.oracles.reference_vector import ReferenceVector
from tests.support.serving import Server
from torch import Tensor

D_MODEL = 64


class Made(NamedTuple):
    """A vector to upload."""

    numbers: Tensor
    layer: int
    point: str = "resid_post"
    sign: int = 1

    def file(self, **metadata: str) -> bytes:
        said = {"layer": str(self.layer), "site": self.point, "sign": f"{self.sign:+d}", "source": "a random draw"}
        return save({"v": self.numbers}, metadata=said | metadata)

    def reference(self) -> ReferenceVector:
        return ReferenceVector(self.numbers, self.sign, f"blocks.{self.layer}.hook_{self.point}")


def draw(seed: int, length: float = 1.0) -> Tensor:
    numbers = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))
    return length * numbers / numbers.norm()


def upload(server: Server, name: str, file: bytes) -> httpx.Response:
    headers = {"content-type": "application/octet-stream"}
    return server.http.post("/v1/vectors", params={"name": name}, content=file, headers=headers)
