"""The receipt: steering as it was resolved, and as it was applied by the engine's reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from saeclamp.types import (
    Fired,
    InterventionReceipt,
    Operation,
    Receipt,
    ServerIdentity,
    Summary,
    TokenCounts,
)
from saeclamp_server.errors import NotAppliedError
from saeclamp_server.steering.context import SteeringContext
from saeclamp_server.steering.program import EditSpec
from saeclamp_server.steering.resolve import ResolvedSteering
from saeclamp_server.steering.warnings import num_prompt_edited, warnings_after


def build_receipt(
    resolved: ResolvedSteering,
    reports: Mapping[int, Mapping[str, Any]],
    num_sequences: int,
    context: SteeringContext,
    model: str,
    server: ServerIdentity,
) -> Receipt:
    """
    Write the receipt from the engine's reports on a request's sequences.

    model:   name of the base model
    server:  that answers
    reports: fields of `engine.worker.steering_report.SteeringReport`, by the sequence's number among the choices
    context: the steering context
    Raises NotAppliedError unless every sequence was steered: the answer must not leave then.
    """
    failures = [report["failure"] for report in reports.values() if report["failure"] is not None]
    if failures:
        raise NotAppliedError(failures[0])
    if len(reports) != num_sequences:
        raise NotAppliedError(f"it reported on {len(reports)} of {num_sequences} sequences.")
    program, done = resolved.program, [*reports.values()]
    context = replace(context, vectors=resolved.vectors)  # some may have been deleted meanwhile
    return Receipt(
        applied=True,
        spec=program.spec,
        model=model,
        sae={name: f"sha256:{sha256}" for name, sha256 in program.saes},
        interventions=tuple(
            _intervention_receipt(
                edit, operation, rule, [_EditResult.from_report(report, number) for report in done], context
            )
            for number, (edit, (operation, rule)) in enumerate(zip(program.edits, resolved.interventions, strict=True))
        ),
        fired=_fired(resolved, reports, context),
        warnings=warnings_after(program, done, context),
        server=server,
    )


class _EditResult(NamedTuple):
    """Counts of one edit in one sequence."""

    prompt: int
    stats: Mapping[str, float]

    @classmethod
    def from_report(cls, report: Mapping[str, Any], number: int) -> _EditResult:
        return cls(num_prompt_edited(report, number), report["tallies"][number])


def _intervention_receipt(
    edit: EditSpec, operation: Operation, rule: str | None, done: Sequence[_EditResult], context: SteeringContext
) -> InterventionReceipt:
    site, of = context.site_of(edit), context.saes.get(edit.sae)
    sae = of and of.entry
    stats_of_edits = [stats for _, stats in done]
    return InterventionReceipt(
        feature=None if operation.feature is None else str(operation.feature),
        vector=operation.vector,
        rule=rule,
        sae=sae and sae.name,
        index=sae and edit.index,
        name=sae and context.name_of(sae.name, edit.index),
        description=sae and context.describe(sae.name, edit.index),
        layer=site.layer,
        site=str(site),
        op=operation.op,
        value=getattr(operation, "value", None),
        unit=getattr(operation, "unit", None),
        value_act=None if edit.op == "scale" else edit.value,
        factor=getattr(operation, "factor", None),
        tokens=TokenCounts(
            prompt=sum(prompt for prompt, _ in done),
            generated=sum(int(stats["generated"]) for stats in stats_of_edits),
            sinks=sum(int(stats["prompt_sinks"] + stats["generated_sinks"]) for stats in stats_of_edits),
        ),
        act_before=_summary(stats_of_edits, "act", "act"),
        dose=_summary(
            stats_of_edits, "dose", "token_resid_norm" if context.norms_of(edit).of_resid else "token_site_norm"
        ),
        approximation=sae and sae.summary.approximation,
    )


def _summary(stats_of_edits: Sequence[Mapping[str, float]], what: str, unit: str) -> Summary | None:
    measured = sum(stats["prompt"] + stats["generated"] for stats in stats_of_edits)
    # an edit may have touched positions, all of which were found in the prefix cache
    if not measured:
        return None
    return Summary(
        mean=sum(stats[f"{what}_sum"] for stats in stats_of_edits) / measured,
        max=max(stats[f"{what}_max"] for stats in stats_of_edits),
        unit=unit,
    )


def _fired(
    resolved: ResolvedSteering, reports: Mapping[int, Mapping[str, Any]], context: SteeringContext
) -> tuple[Fired, ...]:
    return tuple(
        Fired(
            rule=wire.name,
            choice=choice,
            token=fired["position"],
            value=context.shown_act(rule.comparisons[0].sae, fired["acts"][0]),
            # from the last to the first, so that of several of one feature the first stays
            acts={
                comparison.target: context.shown_act(comparison.sae, act)
                for comparison, act in reversed([*zip(rule.comparisons, fired["acts"], strict=True)])
            },
            num_tokens=fired["num_tokens"],
        )
        for choice, report in sorted(reports.items())
        for wire, rule, fired in zip(resolved.steering.rules, resolved.program.rules, report["fired"], strict=True)
        if fired is not None
    )
