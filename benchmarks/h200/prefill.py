"""Prompts of thousands of tokens through a model of 8B's shape, without graphs: time, and peak memory."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from benchmarks.h200.decode import IDLE
from benchmarks.h200.device import Card, compare
from benchmarks.h200.model import TINY, Decoder, ModelShape
from benchmarks.h200.record import Record
from benchmarks.h200.tables import Shape, Tables, kinds
from torch import Tensor

from saeclamp_server.engine.worker.program_tables import Counters
from saeclamp_server.engine.worker.top_features import TopFeaturesInputs, strongest_features

PROMPTS, DRY_PROMPTS = (2048, 8192), (3,)
D_SAE, DRY_D_SAE = 131_072, 256
TOP_K = 8
MIB = 1 << 20
ONE_SITE = (IDLE, "1 feature each", "16 features each", "64 features each", "a rule each", "3 features read")
ROUNDS = 3


def run(device: Card, record: Record) -> None:
    """Time prompts hooked at one layer and at all, then find the strongest features of the longest."""
    model = Decoder(TINY if device.is_dry else ModelShape(cache_bytes=MIB), device.torch)
    prompts, layers = DRY_PROMPTS if device.is_dry else PROMPTS, model.shape.num_layers
    middle = layers // 2
    shape = Shape(model.shape.width, DRY_D_SAE if device.is_dry else D_SAE, middle, [*range(layers)])
    programs = kinds(shape, 0, 1)
    tables = Tables(device, shape, len(programs), max(prompts))
    numbers = {name: tables.add(program, prompt_len=max(prompts)) for name, program in programs.items()}
    for num_tokens in prompts:
        ids = torch.zeros(num_tokens, dtype=torch.int64, device=device.torch)
        plain = _prefill(tables, model, ids, [], None)
        plain()
        with device.peak() as of_plain:
            plain()
        for sites, names in (([middle], ONE_SITE), (range(layers), ("a vector at each site",))):
            for name in names:
                call = _prefill(tables, model, ids, sites, numbers.get(name))
                call()
                with device.peak() as of_steered:
                    call()
                times = compare(device, plain, call, 1 if device.is_dry else ROUNDS, 1)
                about = {"tokens": num_tokens, "sites": len(sites), "setting": name, **times}
                record.add("prompts", {**about, "extra_mib": round((of_steered[0] - of_plain[0]) / MIB, 1)})
    del model
    _find_strongest(device, record, tables, shape, max(prompts))


def _prefill(
    tables: Tables, model: Decoder, ids: Tensor, sites: Collection[int], number: int | None
) -> Callable[[], Any]:
    steering = tables.steering
    batch = None if number is None else tables.batch([number], len(ids), first_position=0)
    unused = None if number is None else Counters._make(one[0] for one in steering.programs.counters([number]))

    def call() -> None:
        if batch is None or number is None:
            steering.executor.clear()
        else:
            # as if the prompt came for the first time: what was counted is not counted again
            steering.programs.restore(number, unused)
            steering.executor.map_tokens(batch)
        model.prefill(ids, sites)

    return call


def _find_strongest(device: Card, record: Record, tables: Tables, shape: Shape, num_tokens: int) -> None:
    """Find the strongest of all features at each token, for which the whole SAE is run."""
    sae = tables.states[shape.sae_at].reads[0].whole
    x = torch.randn(num_tokens, shape.width, device=device.torch)
    rows = torch.arange(num_tokens, device=device.torch)
    everyone = torch.ones_like(rows, dtype=torch.bool)
    wanted = TopFeaturesInputs(rows, everyone, everyone, TOP_K)
    strongest_features(sae, x, wanted)
    with device.peak() as peak:
        strongest_features(sae, x, wanted)
    time = device.milliseconds(lambda: strongest_features(sae, x, wanted), 1)
    about = {"tokens": num_tokens, "features": sae.d_sae, "peak_mib": round(peak[0] / MIB, 1), "ms": round(time, 2)}
    record.put("strongest_features", about)
