"""A whole `steering` object: every part resolved, contradictions and too large doses refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saeclamp.types import MAX_INTERVENTIONS, Ablate, Operation, Roles, Scale, Steering
from saeclamp_server import scopes
from saeclamp_server.conversation import Conversation
from saeclamp_server.doses import check_doses, dose
from saeclamp_server.errors import InvalidSteeringError
from saeclamp_server.program import Edit, EditOp, Rule, SteeringProgram
from saeclamp_server.steering.conditions import refuse_acting_before_knowing, resolve_readout, resolve_rule
from saeclamp_server.steering.served import Served
from saeclamp_server.steering.targets import find, to_act, to_scope


@dataclass(frozen=True)
class ResolvedSteering:
    """A request's steering, checked against the loaded SAEs."""

    steering: Steering
    program: SteeringProgram
    """One edit per intervention, in order: those of the request, then those of its rules."""

    @property
    def interventions(self) -> list[tuple[Operation, str | None]]:
        """What each edit of the program was, with the name of its rule."""
        return [(operation, rule) for operation, rule, _ in _interventions(self.steering)]


def roles_in(steering: Steering | None) -> set[str]:
    """Collect the roles by which tokens are chosen."""
    if steering is None:
        return set()
    chosen = [operation.tokens for operation, _, _ in _interventions(steering)]
    chosen += [rule.tokens for rule in steering.rules]
    chosen += [steering.readout.tokens] if steering.readout else []
    return {role for tokens in chosen if isinstance(tokens, Roles) for role in tokens.roles}


def resolve(steering: Steering, served: Served, conversation: Conversation | None = None) -> ResolvedSteering:
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
        resolve_rule(rule, served, conversation, f"steering.rules[{number}]")
        for number, rule in enumerate(steering.rules)
    )
    numbers = {rule.name: number for number, rule in enumerate(steering.rules)}
    edits = [
        _edit(operation, served, conversation, path, None if name is None else numbers[name])
        for operation, name, path in interventions
    ]
    paths = [path for _, _, path in interventions]
    _refuse_early_acts(rules, edits, served)
    prompt_len = conversation.prompt_len if conversation else None
    _refuse_contradictions(edits, paths, prompt_len)
    if served.max_dose is not None:
        _check_doses(edits, paths, served, served.max_dose, prompt_len)
    readout = resolve_readout(steering.readout, served, conversation, "steering.readout")
    program = SteeringProgram(tuple(edits), (), rules, readout)
    used = tuple((name, served.saes[name].sha256) for name in sorted(program.sae_names))
    return ResolvedSteering(steering, SteeringProgram(tuple(edits), used, rules, readout))


def _interventions(steering: Steering) -> list[tuple[Operation, str | None, str]]:
    """Every intervention, with the name of its rule and its JSON path."""
    own = [
        (operation, None, f"steering.interventions[{number}]")
        for number, operation in enumerate(steering.interventions)
    ]
    return own + [
        (operation, rule.name, f"steering.rules[{number}].then[{nth}]")
        for number, rule in enumerate(steering.rules)
        if rule.then != "abort"
        for nth, operation in enumerate(rule.then)
    ]


def _edit(operation: Operation, served: Served, conversation: Conversation | None, path: str, rule: int | None) -> Edit:
    if operation.feature is None:
        raise InvalidSteeringError("This version of saeclamp does not support uploaded vectors yet.", f"{path}.vector")
    sae, index = find(operation.feature, served.saes, f"{path}.feature")
    scope = to_scope(operation.tokens, conversation, f"{path}.tokens")
    op, value = _move(operation, served, sae.name, index, path)
    return Edit(sae.name, index, op, value, scope, operation.special_tokens, rule)


def _move(operation: Operation, served: Served, sae: str, index: int, path: str) -> tuple[EditOp, float]:
    if isinstance(operation, Ablate):
        return "clamp", 0.0
    if isinstance(operation, Scale):
        return "scale", operation.factor + 0.0
    value = to_act(operation.value, operation.unit, served, sae, index, path)
    return operation.op, value + 0.0  # no -0.0: it does what 0.0 does


def _refuse_early_acts(rules: Sequence[Rule], edits: Sequence[Edit], served: Served) -> None:
    for number, rule in enumerate(rules):
        own = [edit for edit in edits if edit.rule == number]
        refuse_acting_before_knowing(rule, own, served, f"steering.rules[{number}]")


def _refuse_contradictions(edits: Sequence[Edit], paths: Sequence[str], prompt_len: int | None) -> None:
    """Two targets for one feature at one token have no defined sum. Two rules may hold at one token."""
    for second, edit in enumerate(edits):
        for first, other in enumerate(edits[:second]):
            same = (edit.sae, edit.index) == (other.sae, other.index)
            if same and scopes.can_meet(edit.tokens, other.tokens, prompt_len):
                where = "some of these tokens" if prompt_len is not None else "these tokens, or can in some prompt"
                raise InvalidSteeringError(
                    f"{paths[first].removeprefix('steering.')} already moves {edit.sae}/{edit.index} at {where}.",
                    f"{paths[second]}.feature",
                )


def _check_doses(
    edits: Sequence[Edit], paths: Sequence[str], served: Served, max_dose: float, prompt_len: int | None
) -> None:
    """Rules count as if they held."""
    sites = [served.saes[edit.sae].summary.site for edit in edits]
    doses = [
        dose(edit, served.lengths[edit.sae], served.max_act(edit.sae, edit.index), str(site))
        for edit, site in zip(edits, sites, strict=True)
    ]
    check_doses(edits, paths, sites, doses, max_dose, prompt_len)
