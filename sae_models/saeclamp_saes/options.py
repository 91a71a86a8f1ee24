"""Options that tell a loader what a checkpoint's files do not say: `NAME=PATH?key=value&key=value`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from saeclamp_saes.errors import OptionError
from saeclamp_saes.sites import Site

OPTIONS = {
    "format": "which family's layout it is, where its content fits several (square matrices, for example)",
    "layer": "which layer's SAE, where a folder or file holds several, or which layer it belongs to",
    "site": "where it reads (and writes, without site_out), as in resid_post.19",
    "site_out": "where it writes, as in mlp_out.19",
    "input_scale": "the constant its inputs are multiplied by before encoding; of a crosscoder, one a head: 0.27,0.24",
    "normalize": "none, layer_norm or constant_norm_rescale, where a SAELens file's normalize_activations is wrong",
    "center": "yes or no: whether the mean over d_in was taken from its inputs, where the files do not say",
    "activation": "relu, jumprelu or topk, where the files do not say; topk (with k) also where they say something else",
    "k": "how many activations a TopK keeps",
    "threshold": "a calibrated threshold to use in place of TopK (approximate), or one that the files lack",
}


@dataclass
class Options:
    """Parsed options. A loader asks for those it can use; what no loader asked for is an error, never ignored."""

    values: Mapping[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    @classmethod
    def parse(cls, text: str) -> Options:
        """Read `key=value&key=value`. Raises OptionError."""
        values: dict[str, str] = {}
        for part in filter(None, text.split("&")):
            key, equals, value = part.partition("=")
            if key not in OPTIONS:
                near = difflib.get_close_matches(key, OPTIONS, 1)
                known = f"did you mean {near[0]} ({OPTIONS[near[0]]})?" if near else f"options: {', '.join(OPTIONS)}."
                raise OptionError(f"There is no option {key!r}; {known}")
            if not equals or not value or key in values:
                raise OptionError(f"Option {part!r} must be written {key}=VALUE, once: {OPTIONS[key]}.")
            values[key] = value
        return cls(values)

    def __str__(self) -> str:
        return "&".join(f"{key}={value}" for key, value in sorted(self.values.items()))

    def text(self, key: str, *allowed: str) -> str | None:
        """Return the option, None when it was not given. Raises OptionError unless it is one of `allowed`."""
        self.used.add(key)
        value = self.values.get(key)
        if value is not None and allowed and value not in allowed:
            raise OptionError(f"Option {key}={value} must be one of {', '.join(allowed)}.")
        return value

    def integer(self, key: str) -> int | None:
        """Return a number of at least 0, None when it was not given. Raises OptionError."""
        value = self.text(key)
        if value is None:
            return None
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise OptionError(f"Option {key}={value} must be a whole number.")
        return int(value)

    def number(self, key: str) -> float | None:
        """Return a positive finite number, None when it was not given. Raises OptionError."""
        value = self.text(key)
        if value is None:
            return None
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            raise OptionError(f"Option {key}={value} must be a positive number.")
        return number

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return positive finite numbers that commas separate, none when it was not given. Raises OptionError."""
        value = self.text(key)
        try:
            numbers = () if value is None else tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = (math.nan,)
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise OptionError(f"Option {key}={value} must be positive numbers, with commas between them.")
        return numbers

    def site(self, key: str) -> Site | None:
        """Return a site, None when it was not given. Raises OptionError."""
        value = self.text(key)
        try:
            return None if value is None else Site.parse(value)
        except ValueError as exc:
            raise OptionError(f"Option {key}: {exc}") from None

    def check_all_used(self) -> None:
        """Raise OptionError for an option that no loader asked for."""
        idle = sorted(self.values.keys() - self.used)
        if idle:
            hint = " (to say where it sits, write ?site=resid_post.LAYER)" if "layer" in idle else ""
            raise OptionError(f"Option {', '.join(idle)} has no meaning for this checkpoint{hint}.")
