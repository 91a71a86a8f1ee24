"""From the wire to a program: names to features, units to activations. What cannot be applied ends the request here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saeclamp.types import (
    Ablate,
    Add,
    After,
    AtLeast,
    AtMost,
    Clamp,
    FeatureIndex,
    First,
    InterventionReceipt,
    Operation,
    Positions,
    Receipt,
    Roles,
    Scale,
    Steering,
    Summary,
    TokenCounts,
    Tokens,
)
from saeclamp_saes import SAEEntry
from saeclamp_server import scopes
from saeclamp_server.conversation import Conversation
from saeclamp_server.doses import Lengths, check_doses, dose, in_act
from saeclamp_server.errors import (
    FeatureOutOfRangeError,
    InvalidSteeringError,
    NotAppliedError,
    UnknownFeatureError,
    UnknownSAEError,
)
from saeclamp_server.program import Edit, EditOp, SteeringProgram
from saeclamp_server.scopes import Scope

SAFE_DOSE = 1.0
"""Edit longer than the residual itself: the model sees more of the edit than of the text."""


@dataclass(frozen=True)
class ResolvedSteering:
    """A request's steering, checked against the loaded SAEs."""

    steering: Steering
    program: SteeringProgram
    """One edit per intervention, in order."""


def roles_in(steering: Steering | None) -> set[str]:
    """Collect the roles by which tokens are chosen."""
    scopes = [intervention.tokens for intervention in steering.interventions] if steering else []
    return {role for scope in scopes if isinstance(scope, Roles) for role in scope.roles}


@dataclass(frozen=True)
class Served:
    """What this server steers with."""

    saes: Mapping[str, SAEEntry]
    lengths: Mapping[str, Lengths]
    """By the SAE's name."""
    labelled: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Largest activations that labels know, by the SAE's name and the feature's index."""
    max_dose: float | None = None
    """Longest edit of a token, as a multiple of the stream's median length; None is without bound."""

    def max_act(self, sae: str, index: int) -> float | None:
        """Look up a feature's stored maximum: the feature book's, or else the labels'."""
        note = self.saes[sae].features.get(index)
        if note is not None and note.max_act is not None:
            return note.max_act
        return self.labelled[sae][index] if sae in self.labelled else None


def resolve(steering: Steering, served: Served, conversation: Conversation | None = None) -> ResolvedSteering:
    """
    Find every feature and convert every value. Raises RequestError.

    conversation: needed where tokens are chosen by role
    """
    edits = [
        _edit(intervention, served, conversation, f"steering.interventions[{number}]")
        for number, intervention in enumerate(steering.interventions)
    ]
    prompt_len = conversation.prompt_len if conversation else None
    _refuse_contradictions(edits, prompt_len)
    if served.max_dose is not None:
        sites = [served.saes[edit.sae].summary.site for edit in edits]
        doses = [
            dose(edit, served.lengths[edit.sae], served.max_act(edit.sae, edit.index), str(site))
            for edit, site in zip(edits, sites, strict=True)
        ]
        check_doses(edits, sites, doses, served.max_dose, prompt_len)
    used = tuple((name, served.saes[name].sha256) for name in sorted({edit.sae for edit in edits}))
    return ResolvedSteering(steering, SteeringProgram(tuple(edits), used))


def _edit(intervention: Operation, served: Served, conversation: Conversation | None, path: str) -> Edit:
    sae, index = _find(intervention.feature, served.saes, f"{path}.feature")
    scope = _scope(intervention.tokens, conversation, f"{path}.tokens")
    op, value = _move(intervention, served, sae.name, index, path)
    return Edit(sae.name, index, op, value, scope, intervention.special_tokens)


def _move(intervention: Operation, served: Served, sae: str, index: int, path: str) -> tuple[EditOp, float]:
    if isinstance(intervention, Ablate):
        return "clamp", 0.0
    if isinstance(intervention, Scale):
        return "scale", intervention.factor + 0.0
    return intervention.op, _in_act(intervention, served, sae, index, path) + 0.0  # no -0.0: it does what 0.0 does


def _scope(tokens: Tokens, conversation: Conversation | None, path: str) -> Scope:
    match tokens:
        case First(first=num):
            return ((0, num),)
        case After(after=num):
            return ((num, None),)
        case Positions(positions=positions):
            return scopes.of_positions(positions)
        case Roles(roles=roles):
            if conversation is None:
                raise InvalidSteeringError("Only the messages of a chat completion have roles.", f"{path}.roles")
            said: Scope = tuple((start, end) for role, start, end in conversation.spans if role in roles)
            return (*said, *scopes.GENERATED) if "assistant" in roles else said
    return {"all": scopes.ALL, "prompt": scopes.PROMPT, "generated": scopes.GENERATED}[str(tokens)]


def _find(feature: str | FeatureIndex, saes: Mapping[str, SAEEntry], path: str) -> tuple[SAEEntry, int]:
    sae_name, _, which = str(feature).partition("/")
    if sae_name not in saes:
        raise UnknownSAEError(sae_name, saes, path)
    sae = saes[sae_name]
    # int() reads any script's digits and would take a sign; an index is plain
    index = int(which) if which.isascii() and which.isdigit() else sae.index_of(which)
    if index is None:
        raise UnknownFeatureError(
            sae_name, which, (note.name for note in sae.features.values()), sae.summary.d_sae, path
        )
    if index >= sae.summary.d_sae:
        raise FeatureOutOfRangeError(sae_name, index, sae.summary.d_sae, path)
    return sae, index


def _in_act(intervention: Clamp | Add | AtLeast | AtMost, served: Served, sae: str, index: int, path: str) -> float:
    value, feature = intervention.value, intervention.feature
    if intervention.unit == "act":
        return value
    if intervention.unit == "resid_norm":
        return in_act(value, served.lengths[sae], index, f"{path}.unit")
    max_act = served.max_act(sae, index)
    if max_act is None:
        raise InvalidSteeringError(
            f"Feature {feature} has no stored maximum activation, so 'max_act' has no meaning for it; "
            "give the value in unit 'act'.",
            f"{path}.unit",
        )
    return value * max_act


def _refuse_contradictions(edits: list[Edit], prompt_len: int | None) -> None:
    """Two targets for one feature at one token have no defined sum."""
    for second, edit in enumerate(edits):
        for first, other in enumerate(edits[:second]):
            same = (edit.sae, edit.index) == (other.sae, other.index)
            if same and scopes.can_meet(edit.tokens, other.tokens, prompt_len):
                where = "some of these tokens" if prompt_len is not None else "these tokens, or can in some prompt"
                raise InvalidSteeringError(
                    f"interventions[{first}] already moves {edit.sae}/{edit.index} at {where}.",
                    f"steering.interventions[{second}].feature",
                )


def receipt(
    resolved: ResolvedSteering,
    reports: list[dict[str, Any]],
    num_sequences: int,
    served: Served,
    model: str,
) -> Receipt:
    """
    Write the receipt from the engine's reports on a request's sequences.

    Raises NotAppliedError unless every sequence was steered: the answer must not leave then.
    """
    failures = [report["failure"] for report in reports if report["failure"] is not None]
    if failures:
        raise NotAppliedError(failures[0])
    if len(reports) != num_sequences:
        raise NotAppliedError(f"it reported on {len(reports)} of {num_sequences} sequences.")
    program = resolved.program
    return Receipt(
        applied=True,
        spec=program.spec,
        model=model,
        sae={name: f"sha256:{sha256}" for name, sha256 in program.saes},
        interventions=tuple(
            _intervention_receipt(resolved, number, reports, served) for number in range(len(program.edits))
        ),
        warnings=_warnings(program, reports),
    )


def _intervention_receipt(
    resolved: ResolvedSteering, number: int, reports: list[dict[str, Any]], served: Served
) -> InterventionReceipt:
    intervention, edit = resolved.steering.interventions[number], resolved.program.edits[number]
    sae = served.saes[edit.sae]
    tallies = [report["tallies"][number] for report in reports]
    note = sae.features.get(edit.index)
    return InterventionReceipt(
        feature=str(intervention.feature),
        sae=edit.sae,
        index=edit.index,
        name=note.name if note else None,
        layer=sae.summary.site.layer,
        site=str(sae.summary.site),
        op=intervention.op,
        value=getattr(intervention, "value", None),
        unit=getattr(intervention, "unit", None),
        value_act=None if edit.op == "scale" else edit.value,
        factor=getattr(intervention, "factor", None),
        tokens=TokenCounts(
            prompt=sum(report["prompt"][number] for report in reports),
            generated=sum(tally["generated"] for tally in tallies),
        ),
        act_before=_summary(tallies, "act", "act"),
        dose=_summary(tallies, "dose", "token_resid_norm" if served.lengths[edit.sae].of_stream else "token_site_norm"),
        approximation=sae.summary.approximation,
    )


def _summary(tallies: list[dict[str, float]], what: str, unit: str) -> Summary | None:
    measured = sum(tally["prompt"] + tally["generated"] for tally in tallies)
    if not measured:
        return None
    return Summary(
        mean=sum(tally[f"{what}_sum"] for tally in tallies) / measured,
        max=max(tally[f"{what}_max"] for tally in tallies),
        unit=unit,
    )


def _warnings(program: SteeringProgram, reports: list[dict[str, Any]]) -> tuple[str, ...]:
    idle = [
        f"interventions[{number}] touched no token."
        for number in range(len(program.edits))
        if not any(report["prompt"][number] + report["tallies"][number]["generated"] for report in reports)
    ]
    doses = [max(report["tallies"][number]["dose_max"] for report in reports) for number in range(len(program.edits))]
    excessive = [
        f"interventions[{number}] moved a token by {dose:.3g} x its residual norm; text usually breaks above {SAFE_DOSE:g}."
        for number, dose in enumerate(doses)
        if dose > SAFE_DOSE
    ]
    return (*idle, *excessive)
