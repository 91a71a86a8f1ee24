"""Names to features, and values in any unit to activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saeclamp.types import After, FeatureIndex, First, GeneratedWindow, Last, Positions, Roles, Tokens, Unit
from saeclamp_saes import SAEEntry
from saeclamp_server.errors import (
    FeatureOutOfRangeError,
    InvalidSteeringError,
    UnknownFeatureError,
    UnknownSAEError,
    UnknownVectorError,
)
from saeclamp_server.served_sae import ServedSAE
from saeclamp_server.steering import token_ranges
from saeclamp_server.steering.chat_spans import ChatSpans
from saeclamp_server.steering.context import SteeringContext
from saeclamp_server.steering.dose import resid_norm_to_act
from saeclamp_server.steering.token_ranges import TokenRanges
from saeclamp_server.vectors import RegisteredVector

MAX_DIGITS = 20
"""Digits of an index, at most."""


def find_feature(feature: str | FeatureIndex, saes: Mapping[str, ServedSAE], path: str) -> tuple[SAEEntry, int]:
    """Find a feature by `<sae>/<name>` or `<sae>/<index>`. Raises RequestError."""
    sae_name, _, which = str(feature).partition("/")
    if sae_name not in saes:
        raise UnknownSAEError(sae_name, saes, path)
    sae = saes[sae_name].entry
    if len(which) > MAX_DIGITS and which.isascii() and which.isdigit():  # int() raises for thousands of them
        raise FeatureOutOfRangeError(sae_name, f"{which[:MAX_DIGITS]}...", sae.summary.d_sae, path)
    # int() reads any script's digits and would take a sign; an index is plain
    index = int(which) if which.isascii() and which.isdigit() else sae.index_of(which)
    if index is None:
        raise UnknownFeatureError(
            sae_name, which, (note.name for note in sae.features.values()), sae.summary.d_sae, path
        )
    if index >= sae.summary.d_sae:
        raise FeatureOutOfRangeError(sae_name, index, sae.summary.d_sae, path)
    return sae, index


def check_sae_names(names: Sequence[str] | None, context: SteeringContext, path: str) -> tuple[str, ...]:
    """Check names of SAEs; None stands for all. Raises UnknownSAEError."""
    for number, name in enumerate(names or ()):
        if name not in context.saes:
            raise UnknownSAEError(name, context.saes, f"{path}[{number}]")
    return tuple(dict.fromkeys(names or context.saes))


def find_vector(name: str, vectors: Mapping[str, RegisteredVector], path: str) -> RegisteredVector:
    """Find an uploaded vector. Raises UnknownVectorError."""
    if name not in vectors:
        raise UnknownVectorError(name, vectors, path)
    return vectors[name]


def to_projection(value: float, unit: Unit, context: SteeringContext, vector: RegisteredVector, path: str) -> float:
    """Convert a value to multiples of a vector. Raises RequestError, which names `path`.unit."""
    if unit == "act":
        return value
    if unit == "resid_norm":
        return resid_norm_to_act(value, vector.norms, 0, f"{path}.unit", context.rounding)
    raise InvalidSteeringError(
        "A vector has no maximum activation, so 'max_act', the default unit, has no meaning for it; give the value in unit "
        "'act' (multiples of the vector) or 'resid_norm' (of the stream's median length).",
        f"{path}.unit",
    )


def to_act(value: float, unit: Unit, context: SteeringContext, sae: str, index: int, path: str) -> float:
    """Convert a value to the encoder's units. Raises RequestError, which names `path`.unit."""
    if unit == "act":
        return value
    if unit == "resid_norm":
        return resid_norm_to_act(value, context.saes[sae].norms, index, f"{path}.unit", context.rounding)
    max_act = context.max_act(sae, index)
    if max_act is None:
        raise InvalidSteeringError(
            f"Feature {sae}/{index} has no stored maximum activation, so 'max_act' has no meaning for it; "
            "give the value in unit 'act'.",
            f"{path}.unit",
        )
    return value * max_act


def to_ranges(tokens: Tokens, conversation: ChatSpans | None, path: str) -> TokenRanges:
    """
    Find the positions that are meant. Raises RequestError.

    conversation: needed where tokens are chosen by role
    """
    match tokens:
        case First(first=num):
            return ((0, num),)
        case After(after=num):
            return ((num, None),)
        case Last(last=num):
            return ((token_ranges.from_prompt_end(-num), token_ranges.PROMPT_END),)
        case GeneratedWindow(generated=(start, end)):
            ends = None if end is None else token_ranges.from_prompt_end(end)
            return ((token_ranges.from_prompt_end(start), ends),)
        case Positions(positions=positions):
            return token_ranges.from_positions(positions)
        case Roles(roles=roles):
            if conversation is None:
                raise InvalidSteeringError("Only the messages of a chat completion have roles.", f"{path}.roles")
            said: TokenRanges = tuple((start, end) for role, start, end in conversation.spans if role in roles)
            # what is generated is the assistant's next message
            return (*said, *token_ranges.GENERATED) if "assistant" in roles else said
    return {"all": token_ranges.ALL, "prompt": token_ranges.PROMPT, "generated": token_ranges.GENERATED}[str(tokens)]
