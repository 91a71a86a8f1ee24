"""
The tokens that an SAE is measured on.

`sample.txt` was written for this project: encyclopaedic paragraphs, dialogue, instructions, code, a letter, news, lists.
Nothing in it is quoted, and the people, places and events of its stories, letters and news items are invented.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeclamp_saes.errors import VerificationError

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE = Path(__file__).parent / "sample.txt"
SEQUENCE_LENGTH = 256
SHORTEST = 16
"""Tokens of the shortest sequence; a shorter remainder is dropped, because its tokens have too little context."""
DEFAULT_TOKENS = 4096


def read_text(path: Path | None) -> str:
    """Read a text file, or the packaged sample for None. Raises VerificationError with a sentence."""
    path = path or SAMPLE
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise VerificationError(f"{path} is not a text file in UTF-8.") from None
    except OSError as exc:
        raise VerificationError(f"{path} cannot be read: {exc.strerror}.") from None


def tokenize_sequences(
    text: str, tokenizer: Any, num_tokens: int = DEFAULT_TOKENS, max_length: int | None = None
) -> list[Tensor]:
    """
    Cut a text into sequences of token ids, (length,) int64 each, that begin as the model's own inputs do (with BOS, or not).

    tokenizer:  a tokenizer of transformers
    num_tokens: tokens of the text to use, at most
    max_length: tokens of a sequence, at most, where the model takes no longer ones
    Raises VerificationError for a text that is too short to say anything.
    """
    import torch  # here, because the command line shows these constants before torch is needed

    begin = bos_id(tokenizer)
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids[:num_tokens]
    step = min(SEQUENCE_LENGTH, max_length or SEQUENCE_LENGTH) - len(begin)
    parts = [ids[first : first + step] for first in range(0, len(ids), step)]
    sequences = [torch.tensor([*begin, *part]) for part in parts if len(part) >= SHORTEST]
    if not sequences:
        raise VerificationError(f"The text has only {len(ids)} tokens: too short to say anything about an SAE.")
    return sequences


def bos_id(tokenizer: Any) -> list[int]:
    """Return the BOS that the model's own inputs begin with, as a list; empty for a tokenizer that adds none."""
    # of an empty text only what the tokenizer adds is left, which may be an EOS instead
    begin: list[int] = tokenizer("").input_ids[:1]
    return begin if begin == [tokenizer.bos_token_id] else []
