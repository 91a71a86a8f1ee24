"""Apollo's end-to-end SAEs: a run's checkpoint with several SAEs, and the published form with one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from tests.saes.loaders.layouts import Written, pickles
from torch import Tensor


def write_run(
    folder: Path,
    *,
    d_in: int = 16,
    d_sae: int = 40,
    layers: Sequence[int] = (2, 5, 10),
    seed: int = 0,
    model_name: str | None = "gpt2-small",
) -> dict[int, Written]:
    """Write `samples_400000.pt` and `final_config.yaml`; what each layer's SAE computes."""
    generator = torch.Generator().manual_seed(seed)
    hooks = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    saes = [_random(d_in, d_sae, generator) for _ in layers]
    names = ("encoder.0.weight", "encoder.0.bias", "decoder.weight", "decoder.bias")
    content = {
        f"{hook.replace('.', '-')}.{name}": tensor
        for hook, sae in zip(hooks, saes, strict=True)
        for name, tensor in zip(names, sae, strict=True)
    }
    path = pickles.save(folder / "samples_400000.pt", content)
    _configure(folder / "final_config.yaml", hooks, model_name)
    centered = model_name is not None and "gpt2" in model_name
    return {layer: _written(path, sae, centered) for layer, sae in zip(layers, saes, strict=True)}


def write(folder: Path, *, d_in: int = 16, d_sae: int = 40, layer: int = 6, seed: int = 0) -> Written:
    """Write the published form, whose decoder's vectors have length 1 already."""
    encoder, b_enc, decoder, b_dec = _random(d_in, d_sae, torch.Generator().manual_seed(seed))
    unit = torch.nn.functional.normalize(decoder, dim=0)
    content = {"encoder.weight": encoder, "encoder.bias": b_enc, "decoder.weight": unit, "decoder.bias": b_dec}
    path = pickles.save(folder / f"e2e_similar_ce_layer_{layer}.pt", content)
    _configure(path.with_suffix(".yaml"), [f"blocks.{layer}.hook_resid_pre"], "gpt2-small")
    return _written(path, (encoder, b_enc, decoder, b_dec), centered=True)


def _configure(path: Path, hooks: list[str], model_name: str | None) -> None:
    saes = {"dict_size_to_input_ratio": 60.0, "sae_positions": hooks, "type_of_sparsifier": "sae"}
    path.write_text(yaml.safe_dump({"tlens_model_name": model_name, "tlens_model_path": None, "saes": saes}))


def _random(d_in: int, d_sae: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    encoder = torch.randn(d_sae, d_in, generator=generator) / d_in**0.5
    decoder = torch.randn(d_in, d_sae, generator=generator)
    biases = 0.4 * torch.randn(d_sae, generator=generator), 0.3 * torch.randn(d_in, generator=generator)
    return encoder, biases[0], decoder, biases[1]


def _written(path: Path, sae: tuple[Tensor, Tensor, Tensor, Tensor], centered: bool) -> Written:
    encoder, b_enc, decoder, b_dec = (tensor.double() for tensor in sae)

    def mean(x: Tensor) -> Tensor:
        return x.mean(dim=1, keepdim=True) if centered else torch.zeros_like(x[:, :1])

    def encode(x: Tensor) -> Tensor:
        return torch.relu((x - mean(x)) @ encoder.T + b_enc)

    def decode(acts: Tensor, x: Tensor) -> Tensor:
        dictionary = decoder / (decoder**2).sum(dim=0).sqrt()  # (d_in, d_sae): one column a feature
        return acts @ dictionary.T + b_dec + mean(x)

    return Written(path, encode, decode)
