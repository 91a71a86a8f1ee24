"""The tensors under one name of a nested pickle, as if they were a file of their own."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from saeclamp_saes.io.tensors import Tensors


class PrefixedTensors(Tensors):
    """The tensors of a file whose names begin with a prefix, named without it."""

    def __init__(self, whole: Tensors, prefix: str) -> None:
        inside = {name.removeprefix(prefix): entry for name, entry in whole.stored.items() if name.startswith(prefix)}
        super().__init__(whole.path, inside, whole.shapes_only)
        self._whole, self._prefix = whole, prefix

    def _chunks(self, name: str, first: int, count: int, step: int) -> Iterator[Tensor]:
        yield from self._whole._chunks(self._prefix + name, first, count, step)
