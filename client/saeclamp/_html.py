"""
How answers show in notebooks: plain HTML with styles inline, which needs no network.

Labels, names and text come from files and models that anybody may have made: all of it is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saeclamp.types import (
        Attribution,
        ComparedAnswer,
        Comparison,
        Contrasted,
        FeatureHits,
        InspectedFeature,
        InspectedToken,
        Inspection,
        Label,
        Receipt,
    )

MAX_MAPS = 3
"""Features whose activations are drawn over a text."""
HUE = "230,159,0"
"""Orange that people who confuse red and green can tell from white."""
ADDED = "background:rgba(0,114,178,.18)"
_CELL = "padding:2px 8px;text-align:left;vertical-align:top"


def inspection(one: Inspection) -> str:
    """Draw an activation heat map of each of the first features over the text, and sum them up."""
    maps = [
        f"<p style='margin:6px 0'><b>{escape(feature.feature)}</b> {_label(feature.label)} "
        f"max {_number(feature.max)}<br>{_heat(one.tokens, feature)}</p>"
        for feature in one.features[:MAX_MAPS]
    ]
    rows = [
        (feature.feature, feature.name or "", _text(feature.label), feature.max, feature.mean, feature.frequency)
        for feature in one.features
    ]
    return "".join(maps) + _table(("feature", "name", "label", "max", "mean", "frequency"), rows) + _notes(one.warnings)


def hits(found: FeatureHits) -> str:
    """Tabulate what a search has found."""
    rows = [
        (
            hit.feature,
            hit.name or "",
            f"{_text(hit.label)}{f' ({hit.label.source})' if hit.label else ''}",
            " ".join(map(repr, hit.tokens)),
            hit.density,
            hit.max_act,
            hit.output_score,
            "-".join(f"{bound:g}" for bound in hit.green_zone) if hit.green_zone else "",
        )
        for hit in found.data
    ]
    headers = ("feature", "name", "label", "active on", "density", "max act", "output score", "green zone")
    return _table(headers, rows) + _notes([found.note] if found.note else [])


def contrasted(found: Contrasted) -> str:
    """Tabulate what tells two sets apart."""
    rows = [
        (one.feature, one.name or "", _text(one.label), one.positive, one.negative, one.effect, one.p)
        for one in found.data
    ]
    headers = ("feature", "name", "label", "positive", "negative", "effect", "p, corrected")
    return _table(headers, rows) + _notes([found.test, *found.warnings])


def attribution(found: Attribution) -> str:
    """Tabulate what a token's likelihood becomes without each feature."""
    rows = [(one.feature, one.name or "", _text(one.label), one.act, one.change, one.predicted) for one in found.data]
    target = f"{found.target.text!r} behind {found.position} tokens: {found.metric} {found.value:.3f}"
    against = f" against {found.against.text!r}" if found.against else ""
    headers = ("feature", "name", "label", "activation", "change without it", "predicted")
    return f"<p>{escape(target + against)}</p>" + _table(headers, rows) + _notes([found.claim])


def comparison(one: Comparison) -> str:
    """Set answers side by side; what the default answer does not say is marked."""
    columns: dict[str, Sequence[ComparedAnswer]] = {"default": one.default, "steered": one.steered}
    if one.prompted is not None:
        columns["prompted"] = one.prompted
    head = "".join(f"<th style='{_CELL}'>{name}</th>" for name in ("seed", *columns))
    body = "".join(
        f"<tr><td style='{_CELL}'>{answers[0].seed}</td>" + "".join(map(_answer, answers)) + "</tr>"
        for answers in zip(*columns.values(), strict=True)
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def receipt(one: Receipt) -> str:
    """Tabulate what was done."""
    rows = [
        (
            item.feature or item.vector or "",
            item.name or "",
            item.site or "",
            item.op,
            "" if item.value is None else f"{item.value:g} {item.unit or ''}",
            item.value_act,
            f"{item.tokens.prompt} + {item.tokens.generated}",
            item.dose.mean if item.dose else None,
        )
        for item in one.interventions
    ]
    headers = ("moved", "name", "site", "op", "value", "in act", "tokens (prompt + generated)", "mean dose")
    fired = [f"rule {fired.rule} held at token {fired.token} of answer {fired.choice}" for fired in one.fired]
    return _table(headers, rows) + _notes([*fired, *one.warnings])


def _answer(answer: ComparedAnswer) -> str:
    own = {token for change in answer.differences for token in range(*change.own)}
    text = "".join(_span(token.text, ADDED if number in own else "") for number, token in enumerate(answer.tokens))
    figures = {"KL": answer.kl, "perplexity": answer.perplexity, "repetition": answer.repetition}
    said = ", ".join(f"{name} {_number(value)}" for name, value in figures.items() if value is not None)
    return f"<td style='{_CELL}'>{text}<br><small>{escape(said)}</small></td>"


def _heat(tokens: Sequence[InspectedToken], feature: InspectedFeature) -> str:
    acts = feature.acts or [0.0] * len(tokens)  # an older server gives none
    return "".join(_warm(token, act, feature.max) for token, act in zip(tokens, acts, strict=True))


def _warm(token: InspectedToken, act: float, largest: float) -> str:
    share = min(1.0, abs(act / largest)) if largest else 0.0
    style = f"background:rgba({HUE},{share:.2f})" if act else "opacity:.5" if token.template else ""
    return _span(token.text, style, f"{act:.3g}" if act else "")


def _span(text: str, style: str, title: str = "") -> str:
    shown = escape(text).replace("\n", "↵<br>")
    hover = f' title="{escape(title)}"' if title else ""
    return f'<span style="{style}"{hover}>{shown}</span>' if style or hover else f"<span>{shown}</span>"


def _table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th style='{_CELL}'>{escape(header)}</th>" for header in headers)
    body = "".join(
        "<tr>" + "".join(f"<td style='{_CELL}'>{_shown(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _shown(value: object) -> str:
    return _number(value) if isinstance(value, float) else "" if value is None else escape(str(value))


def _number(value: float) -> str:
    return f"{value:.3g}"


def _label(label: Label | None) -> str:
    return escape(label.text) if label else ""


def _text(label: Label | None) -> str:
    return label.text if label else ""


def _notes(notes: Iterable[str]) -> str:
    return "".join(f"<p><small>{escape(note)}</small></p>" for note in notes)
