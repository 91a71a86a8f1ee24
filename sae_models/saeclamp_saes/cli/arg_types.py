"""Types of arguments: numbers as they are typed on a command line."""

from __future__ import annotations

import argparse
import re

from saeclamp_saes.lm.text import SHORTEST

MULTIPLES = {"": 1, "k": 1000, "M": 1_000_000, "B": 1_000_000_000}
MOST = 2**53
"""Bound on counts, up to which floating-point numbers are exact."""
LARGEST_SEED = 2**32 - 1


def layer_arg(text: str) -> int:
    """Read a layer's number. Raises ArgumentTypeError, as all functions here do."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a layer's number")
    return int(text)


def count_arg(text: str) -> int:
    """Read a positive whole number, such as 2048, 500k or 25M."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", text)
    number = float(match[1]) * MULTIPLES[match[2]] if match else 0.0
    if number > MOST:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is too large a number")
    if number < 1 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number such as 2048, 500k or 25M")
    return int(number)


def context_arg(text: str) -> int:
    """Read the length of the longest sequences, which must be at least `SHORTEST`: shorter sequences are not read."""
    number = count_arg(text)
    if number < SHORTEST:
        raise argparse.ArgumentTypeError(
            f"{text!r} tokens are too few: sequences of fewer than {SHORTEST} are not read"
        )
    return number


def seed_arg(text: str) -> int:
    """Read a seed of random numbers."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 0 to {LARGEST_SEED:,}")
    return int(text)


def positive_arg(text: str) -> float:
    """Read a positive number."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number


def share_arg(text: str) -> float:
    """Read a number from 0 to below 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share, from 0 to below 1")
    return number
