"""Validation of a steering, without running anything: the code that completions go through, up to the engine."""

from __future__ import annotations

from collections import defaultdict

from saeclamp.types import Clamp, PlannedIntervention, Validate, Validation
from saeclamp_server.api.features import FeatureSearch
from saeclamp_server.api.model_client import ModelClient
from saeclamp_server.steering import ResolvedSteering, SteeringContext, possible_dose, resolve, warnings_before
from saeclamp_server.steering.chat_spans import ChatSpans


async def validate(
    request: Validate, model: ModelClient, context: SteeringContext, search: FeatureSearch
) -> Validation:
    """Answer `POST /v1/steering/validate`. Raises RequestError."""
    conversation = None
    if request.messages is not None:
        prompt = await model.from_messages(request.messages, "messages", answers=True)
        conversation = ChatSpans(len(prompt.ids), prompt.spans or ())
    resolved = resolve(request.steering, context, conversation)
    planned = _planned(resolved, context, search)
    return Validation(
        spec=resolved.program.spec,
        interventions=planned,
        rules=tuple(rule.name for rule in request.steering.rules),
        doses=_doses(planned),
        warnings=warnings_before(resolved.program, context),
    )


def _planned(
    resolved: ResolvedSteering, context: SteeringContext, search: FeatureSearch
) -> tuple[PlannedIntervention, ...]:
    planned = []
    for edit, (operation, rule) in zip(resolved.program.edits, resolved.interventions, strict=True):
        served = context.saes.get(edit.sae)
        sae = served and served.entry
        note = sae.features.get(edit.index) if sae else None
        planned.append(
            PlannedIntervention(
                feature=None if operation.feature is None else str(operation.feature),
                vector=operation.vector,
                rule=rule,
                sae=sae and sae.name,
                index=sae and edit.index,
                name=note.name if note else None,
                label=search.label(edit.sae, edit.index) if sae else None,
                description=search.description(edit.sae, edit.index) if sae else None,
                site=str(context.site_of(edit)),
                op=operation.op,
                value=getattr(operation, "value", None),
                unit=getattr(operation, "unit", None),
                value_act=None if edit.op == "scale" else edit.value,
                factor=getattr(operation, "factor", None),
                dose=possible_dose(edit, context),
                green_zone=note.clamp if note and isinstance(operation, Clamp) else None,
            )
        )
    return tuple(planned)


def _doses(planned: tuple[PlannedIntervention, ...]) -> dict[str, float]:
    """Add up at each site, as if all tokens were the same and all rules held."""
    total: dict[str, float] = defaultdict(float)
    for one in planned:
        if one.dose is not None:
            total[one.site] += one.dose
    return dict(total)
