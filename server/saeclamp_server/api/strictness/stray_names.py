"""Names of what is loaded, where a request says them and nobody reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from starlette.types import Scope

from saeclamp.types import MAX_KEY
from saeclamp.types.refusals import shown
from saeclamp_server.api.state import state_of
from saeclamp_server.api.strictness.foreign_keys import plain, words_of
from saeclamp_server.api.strictness.foreign_shapes import AT_TOP_LEVEL, messages_in, variant_hint, wrapped
from saeclamp_server.api.strictness.misplaced_steering import query_fields
from saeclamp_server.api.strictness.request_fields import FIELDS, MESSAGE_FIELDS
from saeclamp_server.errors import InvalidSteeringError
from saeclamp_server.steering import SteeringContext
from saeclamp_server.variants import VariantRegistry

MAX_PARTS = 1000
"""Parts of an unknown field that are looked at: more than there are interventions."""

CHOOSING_WORDS = {
    "preset",
    "presets",
    "persona",
    "personas",
    "personality",
    "character",
    "profile",
    "style",
    "behavior",
    "behaviour",
}
"""Words of a field by which somebody chooses one of what is loaded, also by a name that may be any word elsewhere."""


async def refuse_loaded_names(body: Any, scope: Scope) -> None:
    """
    Raise RequestError for an unknown field that has the name of an SAE, a feature or a variant, and for a variant in vain.

    A variant is a model's name: of the request, not of a message, or of an object in which something is wrapped.
    """
    if not isinstance(body, Mapping):
        body = {}
    # few requests have any, and only for them the database is asked
    fields = {plain(key): (path, key) for path, key in _unknown_fields(body, scope["query_string"])}
    models = {model: path for path, model in _other_models(body)}
    if not fields and not models:
        return
    state = state_of(scope["app"])
    context, variants = state.context, state.variants
    of_variants = await variants.all_names()
    owners = _owners(context, of_variants)
    for name, (path, key) in fields.items():
        what = owners.get(name)
        if what is not None:
            hint = variant_hint(key, body) if what == "a variant" else AT_TOP_LEVEL
            raise InvalidSteeringError(f"{shown(key)} is the name of {what}, and no field. {hint}", path)
    for key in body.keys() - FIELDS:
        chooses = not CHOOSING_WORDS.isdisjoint(words_of(key))
        said = next(
            (
                text
                for text in _strings_in(body[key])
                if _is_a_full_name(text, context, variants) or (chooses and plain(text) in owners)
            ),
            None,
        )
        if said is not None:
            is_variant = "/" not in said and owners.get(plain(said)) in ("a variant", None)
            hint = variant_hint(said, body) if is_variant else AT_TOP_LEVEL
            raise InvalidSteeringError(f"{shown(key)} is not read, though it names {shown(said)}. {hint}", key)
    for model, path in models.items():
        if model.partition("@")[0] in of_variants or variants.is_of_a_base(model):
            raise InvalidSteeringError(f"{path}: a variant is not read there. {variant_hint(model, body)}", path)


def _unknown_fields(body: Mapping[str, Any], query: bytes) -> Iterator[tuple[str, str]]:
    """Iterate over the paths and names of fields that nobody reads."""
    for key in body.keys() - FIELDS:
        if body[key] is not None:
            yield key, key
    for path, inner in wrapped(body):
        yield from ((path, key) for key in inner.keys() - FIELDS)
    for path, message in messages_in(body):
        yield from ((path, key) for key in message.keys() - MESSAGE_FIELDS - FIELDS)
    for key, _ in query_fields(query):
        if key not in FIELDS:
            yield key, key


def _strings_in(value: Any) -> Iterator[str]:
    """Iterate over the strings and names of fields in a value, as far as someone would write what is to be moved."""
    parts = islice(value, MAX_PARTS) if isinstance(value, list) else (value,)
    for part in parts:
        for text in islice((*part, *part.values()), MAX_PARTS) if isinstance(part, Mapping) else (part,):
            if isinstance(text, str) and len(text) <= MAX_KEY:
                yield text


def _is_a_full_name(text: str, context: SteeringContext, variants: VariantRegistry) -> bool:
    """Tell whether a text is a feature's name with its SAE's, or a variant's with its model's; none is written by chance."""
    sae, slash, feature = text.partition("/")
    return bool(slash and feature and sae in context.saes) or variants.is_of_a_base(text)


def _other_models(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Iterate over the places besides `model` where another model is named."""
    asked = body.get("model")
    for path, inner in (*wrapped(body), *messages_in(body)):
        model = inner.get("model")
        if isinstance(model, str) and model != asked:
            yield f"{path}.model", model


def _owners(context: SteeringContext, of_variants: Iterable[str]) -> dict[str, str]:
    """Say of each name, as `plain` writes it, what has it."""
    notes = [note for sae in context.saes.values() for note in sae.entry.features.values()]
    return {
        **{plain(name): "a variant" for name in of_variants},
        **{plain(note.name): "a feature" for note in notes if note.name is not None},
        **{plain(name): "an SAE" for name in context.saes},
    }
