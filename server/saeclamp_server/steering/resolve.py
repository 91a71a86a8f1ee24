"""Resolves a whole `steering` object to a program; refuses contradictions and too large doses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from saeclamp.types import (
    MAX_AGGREGATES,
    MAX_INTERVENTIONS,
    Ablate,
    Operation,
    Roles,
    Scale,
    Steering,
    Unit,
    VectorCondition,
    comparisons,
)
from saeclamp_server.errors import ContradictionError, InvalidSteeringError
from saeclamp_server.steering import token_ranges
from saeclamp_server.steering.chat_spans import ChatSpans
from saeclamp_server.steering.context import SteeringContext
from saeclamp_server.steering.dose import check_doses, dose
from saeclamp_server.steering.program import EditOp, EditSpec, ReadoutSpec, RuleSpec, SteeringProgram
from saeclamp_server.steering.rules import check_rule_order, resolve_readout, resolve_rule
from saeclamp_server.steering.units import find_feature, find_vector, to_act, to_projection, to_ranges
from saeclamp_server.vector_names import VECTOR
from saeclamp_server.vectors import RegisteredVector


@dataclass(frozen=True)
class ResolvedSteering:
    """A request's steering, checked against the loaded SAEs and the uploaded vectors."""

    steering: Steering
    program: SteeringProgram
    """One edit per intervention, in order: those of the request, then those of its rules."""
    vectors: Mapping[str, RegisteredVector] = field(default_factory=dict)
    """Vectors that are moved or read, by name. The engine keeps them as long as this refers to them, deleted or not."""

    @property
    def interventions(self) -> list[tuple[Operation, str | None]]:
        """Operation that each edit of the program was made from, with the name of its rule."""
        return [(operation, rule) for operation, rule, _ in _interventions(self.steering)]

    @property
    def outcomes(self) -> dict[str, str]:
        """Outcome of each rule, by its name: "abort", "note" or "interventions"."""
        return {rule.name: rule.then if isinstance(rule.then, str) else "interventions" for rule in self.steering.rules}


def roles_used(steering: Steering | None) -> set[str]:
    """Collect the roles by which a steering chooses tokens."""
    if steering is None:
        return set()
    chosen = [operation.tokens for operation, _, _ in _interventions(steering)]
    chosen += [rule.tokens for rule in steering.rules]
    chosen += [steering.readout.tokens] if steering.readout else []
    return {role for tokens in chosen if isinstance(tokens, Roles) for role in tokens.roles}


def vectors_used(steering: Steering | None) -> set[str]:
    """Collect the names of the vectors that a steering moves or reads."""
    if steering is None:
        return set()
    moved = {operation.vector for operation, _, _ in _interventions(steering) if operation.vector is not None}
    compared = [one for rule in steering.rules for one in comparisons(rule.when)]
    read = steering.readout.vectors or () if steering.readout else ()
    return moved | {one.vector for one in compared if isinstance(one, VectorCondition)} | {*read}


def resolve(steering: Steering, context: SteeringContext, conversation: ChatSpans | None = None) -> ResolvedSteering:
    """
    Find every feature and convert every value. Raises RequestError.

    conversation: needed where tokens are chosen by role
    """
    interventions = _interventions(steering)
    if len(interventions) > MAX_INTERVENTIONS:
        raise InvalidSteeringError(
            f"{len(interventions)} interventions, those of the rules among them; at most {MAX_INTERVENTIONS} are allowed.",
            interventions[MAX_INTERVENTIONS][2],
        )
    rules = tuple(
        resolve_rule(rule, context, conversation, f"steering.rules[{number}]")
        for number, rule in enumerate(steering.rules)
    )
    numbers = {rule.name: number for number, rule in enumerate(steering.rules)}
    edits = [
        _edit(operation, context, conversation, path, None if name is None else numbers[name])
        for operation, name, path in interventions
    ]
    paths = [path for _, _, path in interventions]
    _refuse_many_aggregates(rules)
    _refuse_early_acts(rules, edits, context)
    prompt_len = conversation.prompt_len if conversation else None
    readout = resolve_readout(steering.readout, context, conversation, "steering.readout")
    _refuse_many_ranges([*edits, *rules, *([] if readout is None else [readout])])
    meet = token_ranges.overlap_matrix([edit.tokens for edit in edits], prompt_len)
    _refuse_contradictions(edits, paths, meet, prompt_len)
    if context.max_dose is not None:
        _check_doses(edits, paths, meet, context, context.max_dose)
    # hashes last, of all names that edits, rules and the readout have brought in
    program = SteeringProgram(tuple(edits), (), rules, readout, itemised=steering.receipt == "tokens")
    program = add_sae_hashes(program, context)
    vectors = {name: context.vectors[name] for name in vectors_used(steering)}
    return ResolvedSteering(steering, program, vectors)


def add_sae_hashes(program: SteeringProgram, context: SteeringContext) -> SteeringProgram:
    """Bind a program to the hashes of the SAEs and vectors that it names, as they are loaded now."""
    return replace(program, saes=tuple((name, context.sha256_of(name)) for name in sorted(program.sae_names)))


def _interventions(steering: Steering) -> list[tuple[Operation, str | None, str]]:
    """List all interventions, each with the name of its rule and its JSON path."""
    own = [
        (operation, None, f"steering.interventions[{number}]")
        for number, operation in enumerate(steering.interventions)
    ]
    return own + [
        (operation, rule.name, f"steering.rules[{number}].then[{nth}]")
        for number, rule in enumerate(steering.rules)
        for nth, operation in enumerate(rule.interventions)
    ]


def _edit(
    operation: Operation, context: SteeringContext, conversation: ChatSpans | None, path: str, rule: int | None
) -> EditSpec:
    scope = to_ranges(operation.tokens, conversation, f"{path}.tokens")
    if operation.feature is not None:
        sae, index = find_feature(operation.feature, context.saes, f"{path}.feature")
        name = sae.name
        op, value = _edit_op(operation, lambda value, unit: to_act(value, unit, context, name, index, path))
    else:
        assert operation.vector is not None, "the wire takes one of the two"
        vector = find_vector(operation.vector, context.vectors, f"{path}.vector")
        # the row of the engine's bank that has it is found in the engine, by name and hash
        name, index = f"{VECTOR}{vector.name}", 0
        op, value = _edit_op(operation, lambda value, unit: to_projection(value, unit, context, vector, path))
    return EditSpec(name, index, op, value, scope, operation.special_tokens, rule)


def _edit_op(operation: Operation, to_act: Callable[[float, Unit], float]) -> tuple[EditOp, float]:
    # ablating is the clamp to 0, with one spec for both
    if isinstance(operation, Ablate):
        return "clamp", 0.0
    if isinstance(operation, Scale):
        return "scale", operation.factor + 0.0
    return operation.op, to_act(operation.value, operation.unit) + 0.0  # no -0.0: it does what 0.0 does


def _refuse_many_aggregates(rules: Sequence[RuleSpec]) -> None:
    num = 0
    for number, rule in enumerate(rules):
        num += sum(one.over != "token" for one in rule.comparisons)
        if num > MAX_AGGREGATES:
            raise InvalidSteeringError(
                f"At most {MAX_AGGREGATES} comparisons of a request can look over several tokens.",
                f"steering.rules[{number}].when",
            )


def _refuse_early_acts(rules: Sequence[RuleSpec], edits: Sequence[EditSpec], context: SteeringContext) -> None:
    for number, rule in enumerate(rules):
        own = [edit for edit in edits if edit.rule == number]
        check_rule_order(rule, own, context, f"steering.rules[{number}]")


def _refuse_many_ranges(parts: Sequence[EditSpec | RuleSpec | ReadoutSpec]) -> None:
    num_ranges = sum(map(len, {part.tokens for part in parts}))
    if num_ranges > token_ranges.MAX_RANGES:
        raise InvalidSteeringError(
            f"All positions make {num_ranges} separate ranges; at most {token_ranges.MAX_RANGES} can be asked for.",
            "steering",
        )


def _refuse_contradictions(
    edits: Sequence[EditSpec], paths: Sequence[str], meet: NDArray[np.bool_], prompt_len: int | None
) -> None:
    """Refuse two edits of one feature or vector at one token, whose sum is not defined. Two rules may hold at one token."""
    for second, edit in enumerate(edits):
        for first in np.flatnonzero(meet[second, :second]).tolist():
            other = edits[first]
            if (edit.sae, edit.index) == (other.sae, other.index):
                where = "some of these tokens" if prompt_len is not None else "these tokens, or can in some prompt"
                raise ContradictionError(
                    paths[first],
                    f"already moves {edit.target} at {where}.",
                    f"{paths[second]}.{'feature' if edit.vector is None else 'vector'}",
                )


def _check_doses(
    edits: Sequence[EditSpec], paths: Sequence[str], meet: NDArray[np.bool_], context: SteeringContext, max_dose: float
) -> None:
    """Refuse too large doses. Edits of rules count as if the rules held."""
    sites = [context.site_of(edit) for edit in edits]
    doses = [
        dose(edit, context.norms_of(edit), context.max_act(edit.sae, edit.index), str(site), context.needs_measure)
        for edit, site in zip(edits, sites, strict=True)
    ]
    check_doses(edits, paths, sites, doses, meet, max_dose)
