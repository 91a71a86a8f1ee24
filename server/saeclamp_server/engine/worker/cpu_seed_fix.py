"""
Worker process: a work-around for requests with a seed on a CPU, which would end the engine.

In a step that computes only a part of a prompt, vLLM samples a token all the same, discards it, and winds the request's own
generator back by the offset of one sample. A CPU generator has no offset: the call raises, and the engine ends with all its
requests. So here the generator is taken away while such a step is sampled and booked. The discarded token is then drawn
from the generator that all requests without a seed share, which draws for every row of a batch in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def keep_generators_of_partial_prefills(runner: Any) -> None:
    """Wrap a V1 runner's methods, so that it draws from a request's own generator only the tokens that the request gets."""
    sample, bookkeeping = runner._sample, runner._bookkeeping_sync

    def _sample(*args: Any) -> Any:
        with _without_partial_prefills(runner):
            return sample(*args)

    # booking too: it is there that vLLM winds generators back
    def _bookkeeping_sync(*args: Any) -> Any:
        with _without_partial_prefills(runner):
            return bookkeeping(*args)

    runner._sample, runner._bookkeeping_sync = _sample, _bookkeeping_sync


@contextmanager
def _without_partial_prefills(runner: Any) -> Iterator[None]:
    batch = runner.input_batch
    with without_generators(batch.generators, runner.discard_request_mask.np[: batch.num_reqs]):
        yield


@contextmanager
def without_generators(
    generators: MutableMapping[int, torch.Generator], is_discarded: NDArray[np.bool_]
) -> Iterator[None]:
    """
    Take the generators of the rows whose sample is discarded out of `generators`, and put them back at the end.

    generators:   by row of the batch; changed in place, as the sampler reads this very object
    is_discarded: (num_reqs,)
    """
    aside = {row: generators.pop(row) for row in np.flatnonzero(is_discarded).tolist() if row in generators}
    try:
        yield
    finally:
        generators.update(aside)
