"""Numbers as they are typed on a command line."""

from __future__ import annotations

import argparse
import re

MULTIPLES = {"": 1, "k": 1000, "M": 1_000_000, "B": 1_000_000_000}


def layer(text: str) -> int:
    """Read a layer's number. Raises argparse's error, like all here."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a layer's number")
    return int(text)


def count(text: str) -> int:
    """Read a positive whole number, such as 2048, 500k or 25M."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", text)
    number = float(match[1]) * MULTIPLES[match[2]] if match else 0.0
    if number < 1 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number such as 2048, 500k or 25M")
    return int(number)


def positive(text: str) -> float:
    """Read a positive number."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number


def share(text: str) -> float:
    """Read a number from 0 to below 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share, from 0 to below 1")
    return number
