"""
The program of a request: its steering, resolved, in the encoder's units, and JSON on its way to the worker.

    SteeringProgram
    ├── edits      features that are moved, always or where a rule holds
    ├── rules      conditions on activations, evaluated token by token
    ├── readout    activations that the answer shows
    └── itemised   True if the answer shows each edit of each token
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from saeclamp_server.steering.token_ranges import ALL, GENERATED, PROMPT, TokenRanges, can_overlap
from saeclamp_server.vector_names import vector_of

EXTRA_ARGS_KEY = "saeclamp"
"""Key of the program, and of its API call's key, in vLLM's `SamplingParams.extra_args`."""
RECORD_KEY = "saeclamp_record"
"""Key there of an `api.model_client.PromptRecording`."""

ABORTED = "saeclamp:aborted"
"""vLLM's `stop_reason` of an answer that a rule has ended."""

EditOp = Literal["clamp", "add", "at_least", "at_most", "scale"]


@dataclass(frozen=True)
class EditSpec:
    """One feature, moved at some of the request's positions."""

    sae: str
    index: int
    op: EditOp
    value: float
    """Activation in the units of the SAE's encoder; for `scale`, a factor."""
    tokens: TokenRanges = ALL
    special: bool = False
    """True if special tokens and position 0 are touched too."""
    rule: int | None = None
    """Number of the rule that must hold; None: no rule, the edit is always made."""

    @property
    def vector(self) -> str | None:
        """Name of the vector that is moved; None for a feature."""
        return vector_of(self.sae)

    @property
    def target(self) -> str:
        """Name of the feature or vector that is moved, for messages."""
        return self.sae if self.vector is not None else f"{self.sae}/{self.index}"


@dataclass(frozen=True)
class ComparisonSpec:
    """Comparison of an activation with a bound, at a token or over the tokens so far at which its rule was looked at."""

    sae: str
    """SAE of the feature, or the vector's name, as `EditSpec` has them."""
    index: int
    bound: float
    """Activation in the units of the SAE's encoder, or of the projection on a vector."""
    above: bool
    """True: the activation must be above the bound; False: below it."""
    over: Literal["token", "max", "mean"] = "token"
    """The activation at the token, or the maximum or mean of those so far."""
    window: int = 0
    """Number of the last tokens that the mean is over; 0: all so far."""

    @property
    def target(self) -> str:
        """Name of the feature or vector, for messages and receipts."""
        return vector_of(self.sae) or f"{self.sae}/{self.index}"


Form: TypeAlias = "int | tuple[Literal['all', 'any', 'not'], tuple[Form, ...]]"
"""Condition as a tree; its leaves are numbers of the rule's comparisons."""


@dataclass(frozen=True)
class RuleSpec:
    """A rule: its condition, where that is evaluated, and where the rule then holds."""

    comparisons: tuple[ComparisonSpec, ...]
    form: Form
    tokens: TokenRanges = ALL
    """Positions at which the condition is evaluated."""
    special: bool = False
    lasting: bool = False
    """True if the rule holds at all tokens after one at which its condition does."""
    aborts: bool = False
    """True if the answer ends before the first token at which the rule holds."""


@dataclass(frozen=True)
class ReadoutSpec:
    """Activations that the answer shows, token by token."""

    features: tuple[tuple[str, int], ...] = ()
    """(SAE, index) of features, then those of vectors, as `EditSpec` names them"""
    top_k: int = 0
    """Number of strongest features that are shown of each of `saes`."""
    saes: tuple[str, ...] = ()
    tokens: TokenRanges = GENERATED
    special: bool = False


@dataclass(frozen=True)
class SteeringProgram:
    """A request's steering, and the weights that it was resolved against."""

    edits: tuple[EditSpec, ...]
    saes: tuple[tuple[str, str], ...]
    """(name, sha256 of the weights) of every SAE and vector that is named, sorted."""
    rules: tuple[RuleSpec, ...] = ()
    readout: ReadoutSpec | None = None
    itemised: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; `from_json` is its inverse."""
        return asdict(self) | {"rules": [rule_to_json(rule) for rule in self.rules]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SteeringProgram:
        """Raise KeyError, TypeError or ValueError when `value` is not the form that `to_json` writes."""
        return cls(
            edits=tuple(EditSpec(**_ranges_of(edit)) for edit in value["edits"]),
            saes=tuple((name, sha256) for name, sha256 in value["saes"]),
            rules=tuple(_rule(rule) for rule in value.get("rules", ())),
            readout=_readout(value.get("readout")),
            itemised=bool(value.get("itemised", False)),
        )

    @property
    def spec(self) -> str:
        """`sha256:...`, equal exactly for programs that do the same; the order of edits does not matter."""
        canonical = self.to_json()
        # how much of the edits the answer shows changes nothing of what they do
        del canonical["itemised"]
        canonical["edits"] = sorted(canonical["edits"], key=lambda edit: json.dumps(edit, sort_keys=True))
        return "sha256:" + hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()

    @property
    def sae_names(self) -> set[str]:
        """All SAEs that edits, rules and the readout name, and vectors as edits name them."""
        named = {edit.sae for edit in self.edits}
        named |= {comparison.sae for rule in self.rules for comparison in rule.comparisons}
        return named | ({sae for sae, _ in self.readout.features} | {*self.readout.saes} if self.readout else set())

    @property
    def reads_prompt(self) -> bool:
        """True if activations at prompt positions are read."""
        return any(can_overlap(rule.tokens, PROMPT) for rule in self.rules) or self.shows(PROMPT)

    @property
    def needs_all_computed(self) -> bool:
        """
        True if no position may be taken from the prefix cache: what is read there must be computed.

        What is aggregated must be so from the first token on, and also when the request comes back after a preemption, when
        what it has generated is in the cache.
        """
        return self.reads_prompt or any(one.over != "token" for rule in self.rules for one in rule.comparisons)

    def shows(self, side: TokenRanges) -> bool:
        """Tell whether the answer can show positions of a side of the request, `PROMPT` or `GENERATED`."""
        by_readout = self.readout is not None and can_overlap(self.readout.tokens, side)
        return by_readout or (self.itemised and any(can_overlap(edit.tokens, side) for edit in self.edits))

    @property
    def has_token_output(self) -> bool:
        """True if the answer shows activations or edits token by token."""
        return self.readout is not None or self.itemised

    @property
    def reports_steps(self) -> bool:
        """True if the scheduler needs a report on each step."""
        return self.has_token_output or self.can_abort

    @property
    def can_abort(self) -> bool:
        """True if a rule can end the answer."""
        return any(rule.aborts for rule in self.rules)

    @property
    def delays_output(self) -> bool:
        """True if a generated token may leave only when the model has read it, one step after it was sampled."""
        return self.can_abort or self.shows(GENERATED)


def rule_to_json(rule: RuleSpec) -> dict[str, Any]:
    """Return a rule's JSON-able form, in which what does not aggregate has the form that it has always had."""
    value = asdict(rule)
    for comparison in value["comparisons"]:
        if comparison["over"] == "token":
            del comparison["over"], comparison["window"]
    return value


def _rule(value: Mapping[str, Any]) -> RuleSpec:
    comparisons = tuple(ComparisonSpec(**comparison) for comparison in value["comparisons"])
    return RuleSpec(**_ranges_of(value) | {"comparisons": comparisons, "form": _form(value["form"])})


def _readout(value: Mapping[str, Any] | None) -> ReadoutSpec | None:
    if value is None:
        return None
    readout = ReadoutSpec(**_ranges_of(value))
    features = tuple((sae, index) for sae, index in readout.features)
    return replace(readout, features=features, saes=tuple(readout.saes))


def _ranges_of(value: Mapping[str, Any]) -> dict[str, Any]:
    return {**value, "tokens": tuple((start, end) for start, end in value["tokens"])}


def _form(value: int | Sequence[Any]) -> Form:
    if isinstance(value, int):
        return value
    kind, parts = value
    return kind, tuple(_form(part) for part in parts)
