"""Names by which someone would ask for steering where only `steering` is read."""

from __future__ import annotations

import re

from saeclamp.types import MAX_KEY, looks_like_steering
from saeclamp_server.errors import InvalidRequestError
from saeclamp_server.steering.program import EXTRA_ARGS_KEY, RECORD_KEY

FOREIGN_KEYS = {
    "controller": "Goodfire's Ember",
    "features": "Neuronpedia",
    "interventions": "SteeringAPI",
    "sae_clamp_specs": "the RhizoNymph fork of vLLM",
    "steering_vectors": "the RhizoNymph fork of vLLM",
    "prefill_steering_vectors": "the RhizoNymph fork of vLLM",
    "decode_steering_vectors": "the RhizoNymph fork of vLLM",
    "steering_clamps": "the RhizoNymph fork of vLLM",
    "steering_name": "the RhizoNymph fork of vLLM",
}
"""Top-level keys by which other projects ask for steering."""

MISPLACED_KEYS = {"op", "ops", "operation", "operations", "rule", "rules", "receipt", "vector", "vectors"}
"""Parts of `steering` that have no meaning at the top level, and words for them."""

STEERING_WORDS = re.compile(
    r"sae|saes|saeclamp|(un)?clamp\w*|ablat\w*|interven\w*|readouts?|amplif\w*|nudg(e|es|ed|ing)|latents?|neurons?|"
    r"monosemantic\w*|actadd|caa|repe|repeng"
)
"""Words that no other field has in its name."""

FEATURE_WORDS = re.compile(
    r"(?!(in|co)variants?$)\w*variants?|\w*features?|features?(?!d|ring|ri[sz]|flag|gate|toggle)[a-z]\w*"
)
"""Words that ask for steering unless one beside them says that the features are a program's."""

PROGRAM_WORDS = {
    "flag",
    "flags",
    "gate",
    "gates",
    "gating",
    "toggle",
    "toggles",
    "store",
    "stores",
    "extractor",
    "preview",
}
"""Words for parts of a program that have features of their own."""

VECTOR_WORDS = {"vector", "vectors"}
STORE_WORDS = {
    *("store", "stores", "db", "database", "databases", "index", "indexes", "search", "query", "queries", "retrieval"),
    *("embedding", "embeddings", "id", "ids", "field", "fields"),
}
"""Words for where vectors are kept and looked up, which steers nothing."""

ACTIVATION_WORDS = {"activation", "activations"}
ATTRIBUTE_WORDS = {
    *("id", "ids", "index", "indices", "idx", "name", "names", "list", "spec", "specs", "config", "model", "mode"),
    *("value", "values", "strength", "strengths", "scale", "scales", "weight", "weights", "coefficient", "factor"),
    *("layer", "direction", "directions", "addition", "additions", "edit", "edits", "boost", "control", "add", "patch"),
}
"""Words that say no more than which activations, or how much."""

FOREIGN_PHRASES = {"control_vector_scaled", "lm_steer", "act_add", "representation_engineering"}

MAX_FIELD_NAMES = 10_000
"""Different names of fields in a body, where these could be misspelt ones."""


def words_of(key: str) -> list[str]:
    """Split a name into its words, however they are joined."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key[:MAX_KEY]).lower()
    return [word for word in re.split(r"[^a-z0-9]+", name) if word]


def plain(key: str) -> str:
    """Write a name as all that are spelt alike are written."""
    return key[:MAX_KEY].lower().replace("-", "_")


def asks_for_steering(key: str) -> bool:
    """Tell whether a key that no request has is one by which someone would ask for steering."""
    words = words_of(key)
    known = {*FOREIGN_KEYS, *MISPLACED_KEYS, *FOREIGN_PHRASES}
    if key[:MAX_KEY].lower() in known or "_".join(words) in known or looks_like_steering(key):
        return True
    if any(STEERING_WORDS.fullmatch(word) for word in words):
        return True
    if any(FEATURE_WORDS.fullmatch(word) for word in words) and PROGRAM_WORDS.isdisjoint(words):
        return True
    if not VECTOR_WORDS.isdisjoint(words) and STORE_WORDS.isdisjoint(words):
        return True
    return not ACTIVATION_WORDS.isdisjoint(words) and ATTRIBUTE_WORDS.union(ACTIVATION_WORDS).issuperset(words)


class SteeringKeys:
    """Field names of a body that are looked at, once each; so many that it would take long are refused."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[bool, bool]] = {}

    def are_certain(self, key: str) -> bool:
        """Tell whether a key asks for steering wherever it stands, and so is no word of somebody else's."""
        return self._look_at(key)[0]

    def ask(self, key: str) -> bool:
        """Tell whether a key asks for steering where nobody else fills an object."""
        return self._look_at(key)[1]

    def _look_at(self, key: str) -> tuple[bool, bool]:
        """Judge a key, unless that was done before. Raises InvalidRequestError."""
        if key not in self._found:
            if len(self._found) >= MAX_FIELD_NAMES:
                raise InvalidRequestError(
                    f"The body has more than {MAX_FIELD_NAMES} different field names where there are a few dozen.", None
                )
            # our own key would reach the engine unchecked and unsalted
            is_ours = key[:MAX_KEY].lower() in (EXTRA_ARGS_KEY, RECORD_KEY, "interventions")
            is_certain = is_ours or looks_like_steering(key)
            self._found[key] = is_certain, is_certain or asks_for_steering(key)
        return self._found[key]
