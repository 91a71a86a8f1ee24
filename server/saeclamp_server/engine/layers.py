"""
Where the residual stream is in each architecture.

vLLM's decoder layers mostly return `(hidden, residual)`, whose sum is the stream. Only classes whose return value was
checked against the model's own forward are listed; any other is refused, because reading one summand for the stream gives
activations that look right and are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from saeclamp_server.engine.ops import steer_op

PAIR_RETURNING = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
"""Layer classes that return (hidden, residual)."""


class UnsupportedLayerError(RuntimeError):
    """The model's decoder layers are not of a class whose stream we know."""


def hook_layers(model: nn.Module, layers: Iterable[int]) -> None:
    """Register the steering op behind each layer. Must run before vLLM compiles. Raises UnsupportedLayerError."""
    for layer in layers:
        module = model.get_submodule(f"model.layers.{layer}")
        if type(module).__name__ not in PAIR_RETURNING:
            raise UnsupportedLayerError(
                f"Layers of class {type(module).__name__} are not supported; supported: {', '.join(sorted(PAIR_RETURNING))}."
            )
        module.register_forward_hook(_edit_pair(layer))


def _edit_pair(layer: int) -> Callable[[nn.Module, object, tuple[Tensor, Tensor]], None]:
    def hook(module: nn.Module, args: object, output: tuple[Tensor, Tensor]) -> None:
        hidden, residual = output
        steer_op(hidden, residual, layer)

    return hook
