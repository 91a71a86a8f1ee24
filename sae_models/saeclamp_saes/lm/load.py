"""Loading a language model to measure on. The one module that imports transformers; heavy imports wait for the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from saeclamp_saes.errors import VerificationError
from saeclamp_saes.io.sanitize import first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

Device = Literal["cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)


def load_model(model: str, device: Device | None = None, dtype: Dtype = "auto") -> tuple[nn.Module, Any]:
    """
    Load a causal language model, and its tokenizer.

    model:   folder, or name on the hub
    device:  None is the GPU if there is one
    dtype:   auto is float32 on a CPU, where it costs only memory, and the checkpoint's own on a GPU
    Raises VerificationError with a sentence.
    """
    import torch
    from safetensors import SafetensorError

    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise VerificationError("Measuring runs the model with transformers, which is not installed here.") from None
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise VerificationError("There is no GPU that torch can use here: leave out --device cuda.")
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    # no such folder or name; a configuration or tokenizer that is not known; files that are cut short or do not fit
    except (OSError, ValueError, RuntimeError, SafetensorError) as exc:
        raise VerificationError(f"The model {model!r} cannot be loaded: {first_line(exc)}") from exc
    return loaded.to(device).eval(), tokenizer


def max_length_of(model: Any) -> int | None:
    """Return the longest input that the model takes, in tokens; None if its configuration does not say."""
    length = getattr(model.config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def context_length(model: Any, wanted: int) -> int:
    """Return the longest sequence to read: the wanted length, or the model's own limit if that is less."""
    return min(wanted, max_length_of(model) or wanted)


def check_vocabulary(model: Any, sequences: Sequence[Tensor]) -> None:
    """
    Check that the model knows every token.

    sequences: (length,) int64 each
    Raises VerificationError for a tokenizer of another model.
    """
    size = model.get_input_embeddings().num_embeddings
    largest = max(int(sequence.max()) for sequence in sequences)
    if largest >= size:
        raise VerificationError(
            f"The tokenizer is of another model: it makes token {largest}, and the model's vocabulary ends at {size - 1}."
        )
