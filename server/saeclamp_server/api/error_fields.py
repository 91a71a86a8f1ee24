"""The field that an error of vLLM's is about: it names sampling parameters, if anything, and the same for every endpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

FIELDS_OF = {
    "structured_outputs": ("structured_outputs", "response_format", "text", "output_config", "tools"),
    "messages": ("messages", "input", "prompt"),
    "input_tokens": ("messages", "input", "prompt"),
    "logprobs": ("top_logprobs", "logprobs"),
    "max_tokens": ("max_completion_tokens", "max_output_tokens", "max_tokens"),
    "stop": ("stop", "stop_sequences"),
    "chat_template_kwargs": ("chat_template_kwargs",),
}
"""Names that vLLM gives, with the fields by which endpoints take them, the likeliest first."""

ABOUT_OUTPUTS = re.compile(r"structured outputs|grammar|json schema", re.IGNORECASE)

ABOUT_THE_PROMPT = re.compile(
    r"prompt|conversation|chat template|multimodal|input length|context length|token id|ValidatorIterator|"
    r"ChatCompletionMessage|object is not|object has no attribute",
    re.IGNORECASE,
)

ABOUT_THE_TEMPLATE = re.compile(r"multiple values for|return_dict|object is not")
"""Words in messages of vLLM's and, where its handlers trust what they read, of Python's."""


def field_named(message: str, param: Any, fields: Mapping[str, Any]) -> str | None:
    """
    Find the field that an error of vLLM's is about, in the words of the request.

    param:  vLLM's, which may be the name of a sampling parameter
    fields: of the request
    """
    names = [name for name in fields if name.isidentifier() and not name.startswith("_")]
    if isinstance(param, str) and param:
        path = param.removeprefix("body.")
        return next((name for name in FIELDS_OF.get(path, ()) if name in names), path)
    places = [(found.start(), name) for name in names if (found := re.search(_mention(name), message))]
    if places:
        return min(places)[1]
    abouts = {
        "structured_outputs": ABOUT_OUTPUTS,
        "chat_template_kwargs": ABOUT_THE_TEMPLATE,
        "messages": ABOUT_THE_PROMPT,
    }
    likely = (name for kind, about in abouts.items() if about.search(message) for name in FIELDS_OF[kind])
    return next((name for name in likely if name in names), None)


def _mention(name: str) -> str:
    """Match a field where it is meant: `model`, `input` and `text` are words of other sentences too."""
    if "_" in name:
        return rf"\b{name}\b"
    return rf"^{name}\b|[`'\"]{name}[`'\"]|\b{name}(?:=| must | cannot | should )"
