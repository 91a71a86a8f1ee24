"""Bodies, paths and parameters of requests, as both clients send them. What is wrong is refused here, before it is sent."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from saeclamp._exceptions import ArgumentTypeError, InvalidArgumentError
from saeclamp._options import ChatOptions, TextOptions, check_options
from saeclamp._requests import GenerationRequest, SteeringLike, build_generation
from saeclamp._responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    SteeredChatCompletion,
    SteeredCompletion,
)
from saeclamp.types import (
    Attribute,
    Compare,
    Contrast,
    Derive,
    FeatureQuery,
    Inspect,
    NeighboursQuery,
    NewVariant,
    Suggest,
    Validate,
    VariantExport,
    as_steering,
)
from saeclamp.types.base import invalid_argument
from saeclamp.types.interventions import A_FEATURE, is_vector_name

SAES, FEATURES, VARIANTS, VECTORS = "/v1/saes", "/v1/features", "/v1/variants", "/v1/vectors"
VALIDATE, COMPARE = "/v1/steering/validate", "/v1/steering/compare"

Messages: TypeAlias = Sequence[Mapping[str, Any] | BaseModel]
"""Dicts as in OpenAI's API; a message of an earlier answer may stand among them."""
Prompt: TypeAlias = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""Text or token ids, or several of either."""
Passage: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a conversation."""
VectorFile: TypeAlias = bytes | str | os.PathLike[str]
"""The content of a safetensors file, or its path."""


def chat_request(
    messages: Messages, model: str | None, steering: SteeringLike | None, stream: bool, options: ChatOptions
) -> GenerationRequest[ChatCompletion, ChatCompletionChunk]:
    """Make the request of a chat completion."""
    check_options(options, ChatOptions)
    params = {"model": model, "messages": messages, "stream": stream, **options}
    return build_generation(
        "/v1/chat/completions", (ChatCompletion, SteeredChatCompletion), ChatCompletionChunk, params, steering
    )


def completion_request(
    prompt: Prompt, model: str | None, steering: SteeringLike | None, stream: bool, options: TextOptions
) -> GenerationRequest[Completion, Completion]:
    """Make the request of a text completion."""
    check_options(options, TextOptions)
    params = {"model": model, "prompt": prompt, "stream": stream, **options}
    return build_generation("/v1/completions", (Completion, SteeredCompletion), Completion, params, steering)


def sae_path(name: str) -> str:
    """Path of one SAE."""
    return f"{SAES}/{_segment(name)}"


def feature_path(feature: str) -> str:
    """Path of one feature, `<sae>/<index or name>`."""
    sae, slash, which = feature.partition("/")
    if not slash:
        raise InvalidArgumentError(f"feature: {A_FEATURE}, not {feature!r}.", "feature")
    return f"{FEATURES}/{_segment(sae)}/{_segment(which)}"


def _segment(text: str) -> str:
    """Quote a part of a path; one that might lead to another path is refused."""
    if not text.strip("."):
        raise InvalidArgumentError(f"Nothing can be named {text!r}.")
    return quote(text, safe="")


def search_params(query: str, sae: str | Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a search for features; the fields of `FeatureQuery`."""
    saes = (sae,) if isinstance(sae, str) else tuple(sae)
    return FeatureQuery(query=query, sae=saes, **options).to_params()


def inspect_body(passage: Passage, options: Mapping[str, Any]) -> dict[str, Any]:
    """Body of `inspect`; `options` are fields of `Inspect`."""
    return Inspect(**_passage(passage), **options).to_json()


def attribute_body(passage: Passage, options: Mapping[str, Any]) -> dict[str, Any]:
    """Body of `attribute`; `options` are fields of `Attribute`."""
    return Attribute(**_passage(passage), **options).to_json()


def contrast_body(
    positive: Sequence[Passage], negative: Sequence[Passage], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Body of `contrast`; `options` are fields of `Contrast`."""
    sets: dict[str, Any] = {}
    for name, passages in (("positive", positive), ("negative", negative)):
        if isinstance(passages, str):  # which would be taken for a list of letters
            raise ArgumentTypeError(f"{name}: a list of texts is needed, not one text: [text, ...].", name)
        sets[name] = tuple(passages)
    return Contrast(**sets, **options).to_json()


def neighbours_body(features: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Body of `neighbours`; `options` are fields of `NeighboursQuery`."""
    for number, feature in enumerate(features):
        if isinstance(feature, list | tuple):
            raise ArgumentTypeError("Features are given one by one: neighbours(*features).", f"features[{number}]")
    return NeighboursQuery(features=tuple(features), **options).to_json()


def suggest_body(wish: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Body of `suggest`; `options` are fields of `Suggest`."""
    return Suggest(wish=wish, **options).to_json()


def _passage(passage: Passage) -> dict[str, Any]:
    return {"text": passage} if isinstance(passage, str) else {"messages": list(passage)}


def validate_body(steering: SteeringLike, messages: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """Body of a dry run; `messages` are needed for tokens chosen by role."""
    chat = None if messages is None else tuple(dict(message) for message in messages)
    return Validate(steering=as_steering(steering), messages=chat).to_json()


def compare_body(steering: SteeringLike, passage: Passage, options: Mapping[str, Any]) -> dict[str, Any]:
    """Body of `compare`; `options` are fields of `Compare`."""
    asked = {"text": passage} if isinstance(passage, str) else {"messages": [dict(message) for message in passage]}
    return Compare(**asked, steering=as_steering(steering), **options).to_json()


def variant_body(
    name: str, steering: SteeringLike, description: str, base: str | None, alias: str | None
) -> dict[str, Any]:
    """Body by which a variant is created."""
    return NewVariant(
        name=name, steering=as_steering(steering), description=description, base=base, alias=alias
    ).to_json()


def variant_path(name: str) -> str:
    """Path of one variant; a name that might lead to another path is refused."""
    if not name.strip("./"):
        raise InvalidArgumentError(f"name: no variant can be named {name!r}.", "name")
    return f"{VARIANTS}/{quote(name, safe='')}"


def export_body(export: VariantExport | dict[str, Any]) -> dict[str, Any]:
    """Body by which variants are imported."""
    if isinstance(export, dict):
        try:
            export = VariantExport.model_validate(export)
        except ValidationError as exc:
            raise invalid_argument(exc, export, VariantExport) from None
    return {
        "object": export.object,
        "data": [
            {**one.model_dump(mode="json", exclude={"steering"}), "steering": one.steering.to_json()}
            for one in export.data
        ],
    }


def upload_request(name: str, file: VectorFile) -> dict[str, Any]:
    """Make the request that uploads a vector's file, but for its path."""
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    return {"content": content, "params": {"name": name}, "headers": {"content-type": "application/octet-stream"}}


def derive_body(name: str, positive: Sequence[Passage], negative: Sequence[Passage], **options: Any) -> dict[str, Any]:
    """Body of `derive`; `options` are fields of `Derive`."""
    for path, passages in (("positive", positive), ("negative", negative)):
        if isinstance(passages, str):  # which would be taken for a list of letters
            raise ArgumentTypeError(f"{path}: a list of texts is needed, not one text: [text, ...].", path)
    return Derive(name=name, positive=tuple(positive), negative=tuple(negative), **options).to_json()


def vector_path(name: str) -> str:
    """Path of one vector; a name that no vector has is refused: it might lead to another path."""
    if not is_vector_name(name):
        raise InvalidArgumentError(f"name: no vector can be named {name!r}.", "name")
    return f"{VECTORS}/{name}"
