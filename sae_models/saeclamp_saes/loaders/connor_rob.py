"""
Attention SAEs of gpt2-small by Connor Kissane and Rob Krzyzanowski: pickles `<name>.pt`, each with `<name>_cfg.json`.

W_enc (d_in, d_sae), W_dec (d_sae, d_in), b_enc, b_dec; relu((x - b_dec) W_enc + b_enc), of all heads' outputs side by side.
The configuration gives `act_size`, `dict_size` and the hook `act_name`.
They were trained on TransformerLens's gpt2, which moves the value projection's bias out of the heads' outputs: on a model
that keeps it there, x is what enters the output projection less that bias.
Source: loading/pretrained_sae_loaders.py of sae-lens 6.54.
"""

from __future__ import annotations

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import CheckpointSource, positive_int
from saeclamp_saes.loaders.builder import SAEBuilder
from saeclamp_saes.sae import SAE
from saeclamp_saes.sites import from_transformer_lens

NAME = "connor_rob"
TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec"}


def matches(source: CheckpointSource) -> bool:
    """Recognise the four tensors of a file whose own configuration names an activation."""
    if source.tensors.shapes.keys() != TENSORS or len(source.tensors.shapes["W_enc"]) != 2:
        return False
    cfg = source.config(f"{source.weights.stem}_cfg.json") or {}
    return cfg.keys() >= {"act_size", "dict_size", "act_name"}


def read(source: CheckpointSource) -> SAE:
    """Read the weights and fold the bias that is subtracted from the input. Raises CheckpointError."""
    tensors, name = source.tensors, f"{source.weights.stem}_cfg.json"
    cfg, path = source.config(name), source.weights.with_name(name)
    if cfg is None:
        raise CheckpointError(f"{path.parent} has no {name}.")
    d_in, d_sae = positive_int(cfg, "act_size", path), positive_int(cfg, "dict_size", path)
    tensors.expect({"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)})
    draft = SAEBuilder(
        encoder=tensors.transposed("W_enc", (d_in, d_sae)),
        b_enc=tensors.tensor("b_enc", (d_sae,)),
        decoder=tensors.tensor("W_dec", (d_sae, d_in)),
        b_dec=tensors.tensor("b_dec", (d_in,)),
    )
    draft.subtract_from_input(draft.b_dec)
    site = source.site(from_transformer_lens(str(cfg.get("act_name"))))
    return draft.finish(site, model_name=cfg.get("model_name", "gpt2-small"))
