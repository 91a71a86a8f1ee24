"""
Warnings of steering that is applied as asked, but is probably not what was meant.

Before anything is run they are about what the values can do; afterwards, about what they did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saeclamp.types.dose import dose_in_words
from saeclamp_server.errors import InvalidSteeringError
from saeclamp_server.steering.context import SteeringContext
from saeclamp_server.steering.dose import dose
from saeclamp_server.steering.program import EditSpec, SteeringProgram

SAFE_DOSE = 1.0
"""Dose above which an edit is longer than the residual itself: the model sees more of the edit than of the text."""
LEAST_DOSE = 0.02
"""Dose below which answers stay as they are, as a rule."""
ROUNDING = 1e-6
"""Relative tolerance, by which a value at the very end of the green zone is in it, whatever its unit."""


def possible_dose(edit: EditSpec, context: SteeringContext) -> float | None:
    """
    Return the largest dose of an edit, in median norms of the residual stream.

    returns: None where norms could not be measured, which matters only where doses are bounded
    """
    return _dose(edit, context, context.max_act(edit.sae, edit.index))


def warnings_before(program: SteeringProgram, context: SteeringContext) -> tuple[str, ...]:
    """Warn of values alone, in one sentence each."""
    weak = [
        f"interventions[{number}] moves a token at which its feature is not active by {dose_in_words(strength)} x the "
        f"stream's median length: below {LEAST_DOSE:g} answers hardly change."
        for number, edit in enumerate(program.edits)
        if (strength := _strength(edit, context)) is not None and strength < LEAST_DOSE
    ]
    doses = [possible_dose(edit, context) for edit in program.edits]
    excessive = [
        f"interventions[{number}] can move a token by {dose_in_words(dose)} x the stream's median length; text usually "
        f"breaks above {SAFE_DOSE:g}."
        for number, dose in enumerate(doses)
        if dose is not None and dose > SAFE_DOSE
    ]
    return (*_outside_green_zones(program, context), *weak, *excessive)


def num_prompt_edited(report: Mapping[str, Any], number: int) -> int:
    """
    Count the prompt positions that an edit has touched, computed for this answer or found in the prefix cache.

    report: fields of `engine.worker.steering_report.SteeringReport`
    """
    return int(report["prompt"][number] - report["tallies"][number]["prompt_sinks"])


def warnings_after(
    program: SteeringProgram, reports: Sequence[Mapping[str, Any]], context: SteeringContext
) -> tuple[str, ...]:
    """
    Warn of the edits as they were made, in one sentence each.

    reports: fields of `engine.worker.steering_report.SteeringReport`, per sequence
    """
    idle, weak, excessive = [], [], []
    for number, edit in enumerate(program.edits):
        stats_of_edits = [report["tallies"][number] for report in reports]
        measured = sum(stats["prompt"] + stats["generated"] for stats in stats_of_edits)
        count = sum(num_prompt_edited(report, number) for report in reports) + sum(
            stats["generated"] for stats in stats_of_edits
        )
        dose = max(stats["dose_max"] for stats in stats_of_edits)
        # a rule that has not held is no mistake
        if not count and edit.rule is None:
            idle.append(f"interventions[{number}] touched no token.")
        if measured and dose < LEAST_DOSE and _is_meant_to_move(edit):
            weak.append(
                f"interventions[{number}] moved no token by more than {dose_in_words(dose)} x its residual norm: below "
                f"{LEAST_DOSE:g} answers hardly change."
            )
        if dose > SAFE_DOSE:
            excessive.append(
                f"interventions[{number}] moved a token by {dose_in_words(dose)} x its residual norm; text usually breaks "
                f"above {SAFE_DOSE:g}."
            )
    num_positions = max(report["num_positions"] for report in reports)
    unjudged = (sum(counts) for counts in zip(*(report["unjudged"] for report in reports), strict=True))
    blind = [
        f"rules[{number}] was not looked at where its tokens are attention sinks (vectors longer than ten times the "
        f"median): at {count} of them. With special_tokens it is."
        for number, count in enumerate(unjudged)
        if count
    ]
    return (
        *idle,
        *blind,
        *_outside_green_zones(program, context),
        *weak,
        *excessive,
        *_too_long(program, num_positions, context),
    )


def _too_long(program: SteeringProgram, num_positions: int, context: SteeringContext) -> Iterator[str]:
    for name in sorted(program.sae_names & context.saes.keys()):
        size = context.saes[name].entry.summary.context_size
        if size is not None and num_positions > size:
            yield (
                f"SAE {name} was trained on texts of {size} tokens, and here there were {num_positions}: beyond the "
                f"first {size} its features may mean less."
            )


def _outside_green_zones(program: SteeringProgram, context: SteeringContext) -> Iterator[str]:
    for number, edit in enumerate(program.edits):
        zone, max_act = context.green_zone(edit.sae, edit.index), context.max_act(edit.sae, edit.index)
        if zone is None or max_act is None or edit.op != "clamp" or not edit.value:
            continue  # zones are of clamps, and a clamp to 0 takes the feature away
        strength = edit.value / max_act
        if not zone[0] * (1 - ROUNDING) <= strength <= zone[1] * (1 + ROUNDING):
            yield (
                f"interventions[{number}]: {strength:.4g} x max_act is outside the zone that was found to work, "
                f"{zone[0]:g} to {zone[1]:g}."
            )


def _is_meant_to_move(edit: EditSpec) -> bool:
    """Tell whether an edit moves every token that it touches; others leave tokens alone by the feature's activation."""
    return edit.op == "add" or (edit.op == "clamp" and bool(edit.value))


def _strength(edit: EditSpec, context: SteeringContext) -> float | None:
    """Return the dose with the feature not active, in median norms of the stream; None where it says nothing of the edit."""
    is_bound = edit.op == "at_least" and edit.value > 0
    return _dose(edit, context, None) if _is_meant_to_move(edit) or is_bound else None


def _dose(edit: EditSpec, context: SteeringContext, max_act: float | None) -> float | None:
    try:
        return dose(edit, context.norms_of(edit), max_act, str(context.site_of(edit)))
    except InvalidSteeringError:
        return None
