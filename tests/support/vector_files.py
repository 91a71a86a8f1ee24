"""Files of vectors, and an engine that notes which it is told to hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from saeclamp_saes import Site
from saeclamp_server.database import Database
from saeclamp_server.site_norms import SiteNorms
from saeclamp_server.vectors import VectorRegistry, VectorSite, VectorStore

WIDTH = 8
SAID = {"layer": "3", "site": "resid_post", "sign": "+1", "source": "means of 40 prompts"}
PLACES = (VectorSite(Site("resid_post", 3), WIDTH, 2), VectorSite(Site("resid_mid", 5), WIDTH, 2))
LENGTHS = {"vectors@resid_post 3": SiteNorms(50.0, []), "vectors@resid_mid 5": SiteNorms(None, [])}


def numbers(seed: int = 0) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def file(tensor: Tensor | None = None, **said: str) -> bytes:
    return save({"v": numbers() if tensor is None else tensor}, metadata=SAID | said)


class Engine:
    """Its rows, as workers keep them."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], tuple[str, str, list[float]]] = {}
        self.fails = False

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[None]:
        if self.fails:
            raise RuntimeError("the engine is gone")
        assert method == "load_vector"
        place, row, name, sha256, direction = args
        self.rows[place, row] = name, sha256, np.frombuffer(direction, np.float32).tolist()
        return [None]


def held(database: Database, engine: Engine | None = None) -> VectorRegistry:
    """A server's registry of what a database keeps."""
    return VectorRegistry(PLACES, LENGTHS, VectorStore(database, "tiny"), engine or Engine())
