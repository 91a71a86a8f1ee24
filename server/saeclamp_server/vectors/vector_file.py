"""Vector files: safetensors with one vector and its metadata, as users upload and the server stores them. Never a pickle."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from saeclamp.types.interventions import is_vector_name
from saeclamp.types.refusals import did_you_mean
from saeclamp_saes import Site
from saeclamp_saes.io.safetensors import read_header
from saeclamp_server.errors import InvalidVectorError

MAX_BYTES = 4 << 20
"""Bytes of a file, at most. The widest models' vectors take a fiftieth of it."""
MAX_SOURCE = 2000
"""Characters of `source`, at most."""
MAX_NUMBER = 40
"""Characters of a number in the metadata, at most."""
SHORTEST, LONGEST = 1e-9, 1e9
"""Norms beyond which squares and quotients leave what fp32 can hold."""

REQUIRED = ("layer", "site", "sign", "source")
"""Metadata that a file must have."""
BIAS = "bias"
"""Metadata that the file of a probe has: the number that is added to the dot product with the vector."""
CHECKSUM = "sha256"
"""Metadata that a file may have, and then must be right; files that the server writes have it."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIGNS: dict[str, Literal[1, -1]] = {"+1": 1, "-1": -1}


def check_name(name: str) -> None:
    """Raise InvalidVectorError unless it is a name that requests and paths of URLs can have."""
    if not is_vector_name(name):
        raise InvalidVectorError(
            f"{name[:80]!r} is no name for a vector: 1 to 64 letters, digits, '_', '.' and '-', and not dots alone.",
            "name",
        )


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A vector at a site, with the metadata of its file."""

    site: Site
    sign: Literal[1, -1]
    """1 if the numbers as they are push towards the concept, -1 if their negative does."""
    source: str
    """Origin of the numbers, in the user's words."""
    numbers: Tensor
    """(width,) fp32, as uploaded"""
    bias: float | None = None
    """Number that is added to the stream's dot product with the signed vector where it is read; None: none was given."""

    @classmethod
    def parse(cls, data: bytes) -> SteeringVector:
        """Read a safetensors file. Raises InvalidVectorError, which names what is wrong with it."""
        try:
            stored, metadata = read_header(BytesIO(data), len(data))
        except (ValueError, RecursionError) as exc:
            raise InvalidVectorError(_unreadable(data, exc), "body") from exc
        site, sign, source = _described(metadata)
        bias = _bias(metadata[BIAS]) if BIAS in metadata else None
        if len(stored) != 1:
            raise InvalidVectorError(f"The file must hold one tensor; it holds {len(stored)}.", "body")
        ((name, entry),) = stored.items()
        if entry.dtype not in DTYPES:
            raise InvalidVectorError(
                f"{name[:64]!r} holds {_short(entry.dtype)}; a vector is one of {', '.join(map(_short, DTYPES))}.",
                "body",
            )
        if len(entry.shape) != 1 or not entry.shape[0]:
            raise InvalidVectorError(f"{name[:64]!r} has shape {entry.shape}; a vector has one dimension.", "body")
        numbers = torch.frombuffer(bytearray(data[entry.offset :]), dtype=entry.dtype).float()
        direction = cls(site, sign, source, numbers, bias)
        direction._check(metadata.get(CHECKSUM))
        return direction

    @cached_property
    def norm(self) -> float:
        return float(self.numbers.double().norm())

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the numbers and of the metadata."""
        # the hash of a vector without a bias is what it was before there were any
        said = json.dumps([str(self.site), self.sign, self.source, *([] if self.bias is None else [self.bias])])
        return hashlib.sha256(said.encode() + b"\0" + self.numbers.numpy().tobytes()).hexdigest()

    def signed(self) -> Tensor:
        """Return the vector that one unit of activation adds, (width,) fp32."""
        return self.sign * self.numbers

    def to_bytes(self) -> bytes:
        """Write a file that `parse` reads, and finds any damage in."""
        sign = next(text for text, sign in SIGNS.items() if sign == self.sign)
        said = {"layer": str(self.site.layer), "site": self.site.point, "sign": sign, "source": self.source}
        said |= {} if self.bias is None else {BIAS: repr(self.bias)}
        return bytes(save({"vector": self.numbers}, metadata={**said, CHECKSUM: self.sha256}))

    def _check(self, checksum: str | None) -> None:
        if not torch.isfinite(self.numbers).all():
            raise InvalidVectorError("The vector holds NaN or infinity.", "body")
        if not self.numbers.any():
            raise InvalidVectorError("The vector is zero, so it has no direction.", "body")
        if not SHORTEST <= self.norm <= LONGEST:
            raise InvalidVectorError(
                f"The vector's length is {self.norm:.3g}; from {SHORTEST:g} to {LONGEST:g} is allowed. Scale it.",
                "body",
            )
        if checksum not in (None, self.sha256):
            raise InvalidVectorError(
                "The numbers or the metadata are not those that 'sha256' was made of: the file is damaged.",
                f"metadata.{CHECKSUM}",
            )


def _described(metadata: Mapping[str, Any]) -> tuple[Site, Literal[1, -1], str]:
    """Parse the metadata: site, sign and source. Raises InvalidVectorError."""
    # unknown keys are refused, because one of the required ones may be misspelt
    for key in metadata:
        if key not in (*REQUIRED, BIAS, CHECKSUM):
            known = (*REQUIRED, BIAS)
            raise _refusal(key, f"is not known.{did_you_mean(key, known)} Known: {', '.join(known)}.")
    for key in REQUIRED:
        if key not in metadata:
            raise _refusal(key, f"is missing; required are {', '.join(REQUIRED)}.")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise _refusal(key, "must be a string.")
    if metadata["sign"] not in SIGNS:
        raise _refusal(
            "sign", f"is {metadata['sign'][:16]!r}; it must be '+1' or '-1': which way leads to the concept?"
        )
    if not metadata["source"].strip() or len(metadata["source"]) > MAX_SOURCE:
        raise _refusal("source", f"must say where the vector comes from, in 1 to {MAX_SOURCE} characters.")
    return _site(metadata["site"], metadata["layer"]), SIGNS[metadata["sign"]], metadata["source"]


def _bias(text: str) -> float:
    """Read a number as JSON has it. Raises InvalidVectorError."""
    if len(text) > MAX_NUMBER or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?", text):
        raise _refusal(BIAS, f"is {text[:16]!r}; it must be a number, such as '-1.5'.")
    bias = float(text)
    if abs(bias) > LONGEST:
        raise _refusal(BIAS, f"is {bias:.3g}; up to {LONGEST:g} is allowed.")
    return bias + 0.0  # no -0.0: it does what 0.0 does


def _site(text: str, layer: str) -> Site:
    """Read `resid_post` or `resid_post.12`, at a layer that is given besides."""
    if not re.fullmatch(r"[0-9]{1,4}", layer):
        raise _refusal("layer", f"is {layer[:16]!r}; it must be the number of a layer, such as '12'.")
    with_layer = re.fullmatch(r"([a-z_]+)[ .]([0-9]{1,4})", text)
    if with_layer and int(with_layer[2]) != int(layer):
        raise _refusal("layer", f"is {layer!r}, and 'site' is {text!r}.")
    try:
        return Site.parse(f"{with_layer[1] if with_layer else text[:32]}.{int(layer)}")
    except ValueError as exc:
        raise _refusal("site", f"and 'layer' do not make a site: {exc}") from exc


def _refusal(key: str, problem: str) -> InvalidVectorError:
    return InvalidVectorError(f"Metadata {key[:64]!r} {problem}", f"metadata.{key[:64]}")


def _unreadable(data: bytes, exc: Exception) -> str:
    if data.startswith((b"\x80", b"PK")):
        return "The body is a pickle, as torch.save writes it, and is never loaded: save the tensor with safetensors."
    if data.startswith(b"GGUF"):
        return (
            "The body is GGUF, not safetensors. `saeclamp vectors import FILE --model MODEL` makes vectors of a control "
            "vector's layers, and a variant that adds them all."
        )
    return f"The body is not a readable safetensors file: {exc}."


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
