"""Drawings of answers for notebooks, in HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import singledispatch
from html import escape

from saeclamp.types import (
    Attribution,
    ComparedAnswer,
    Comparison,
    Contrasted,
    Described,
    Example,
    FeatureHits,
    InspectedFeature,
    InspectedToken,
    Inspection,
    Neighbour,
    Neighbourhoods,
    Receipt,
    StoredFeature,
    SuggestedPoint,
    SuggestedTrial,
    Suggestion,
    VariantList,
)
from saeclamp.types.base import draw_answers_with
from saeclamp.types.token_text import pieces

HUE = "230,159,0"
"""Orange that people who confuse red and green can tell from white."""
ADDED = "background:rgba(0,114,178,.18)"
FAINT = "opacity:.5"
CELL = "padding:2px 8px;text-align:left;vertical-align:top"
MAX_MAPS = 3
"""Features whose activations are drawn over a text."""
MAX_EXAMPLES = 8


@singledispatch
def to_html(answer: object) -> str | None:
    """Draw an answer; None for one that has no drawing, which shows as text then."""
    return None


@to_html.register
def _inspection(one: Inspection) -> str:
    """An activation heat map of each of the first features over the text, and sums."""
    maps = [
        heading(feature.feature, f"{_about(feature)} max {number(feature.max)}") + _heat(one.tokens, feature)
        for feature in one.features[:MAX_MAPS]
    ]
    rows = [
        (feature.feature, feature.name, _about(feature), feature.max, feature.mean, feature.frequency)
        for feature in one.features
    ]
    return "".join(maps) + table(("feature", "name", "about", "max", "mean", "frequency"), rows) + small(one.warnings)


@to_html.register
def _hits(found: FeatureHits) -> str:
    rows = [
        (
            hit.feature,
            hit.name,
            f"{_about(hit)}{f' ({hit.label.source})' if hit.label else ''}",
            _quoted(hit.tokens),
            hit.density,
            hit.max_act,
            hit.output_score,
            _range(hit.green_zone),
        )
        for hit in found.data
    ]
    headers = ("feature", "name", "about", "active on", "density", "max act", "output score", "green zone")
    return table(headers, rows) + small([found.note] if found.note else [])


@to_html.register
def _feature(one: StoredFeature) -> str:
    """The dashboard: who says what of it, how it clamps, what it promotes, and where it is active."""
    labels = table(("label", "by", "score"), [(label.text, label.source, label.score) for label in one.labels])
    facts = [
        ("density", one.density),
        ("max act", one.max_act),
        ("output score", one.output_score),
        ("green zone (x max act)", _range(one.green_zone)),
        ("best clamp (x max act)", one.best),
    ]
    logits = [
        ("promotes", _quoted(logit.token for logit in one.top_logits or ())),
        ("suppresses", _quoted(logit.token for logit in one.bottom_logits or ())),
    ]
    known = [(name, value) for name, value in [*facts, *logits] if value not in (None, "")]
    parts = [heading(one.feature, " ".join(filter(None, (one.name, _about(one)))))]
    parts += [labels] if one.labels else []
    parts += [table(("figure", "value"), known)] if known else []
    parts += [heading("Active here") + _examples(one.examples)] if one.examples else []
    parts += [heading("Points the same way") + _neighbours(one.neighbours)] if one.neighbours else []
    return "".join(parts)


@to_html.register
def _neighbourhoods(found: Neighbourhoods) -> str:
    return "".join(heading(one.feature, one.name or "") + _neighbours(one.neighbours) for one in found.data)


@to_html.register
def _contrasted(found: Contrasted) -> str:
    rows = [(one.feature, one.name, _about(one), one.positive, one.negative, one.effect, one.p) for one in found.data]
    headers = ("feature", "name", "about", "positive", "negative", "effect", "p, corrected")
    return table(headers, rows) + small([found.test, *found.warnings])


@to_html.register
def _attribution(found: Attribution) -> str:
    """Draw what a token's likelihood becomes without each feature."""
    rows = [(one.feature, one.name, _about(one), one.act, one.change, one.predicted) for one in found.data]
    against = f" against {found.against.text!r}" if found.against else ""
    behind = f"behind {found.position} tokens: {found.metric} {found.value:.3f}"
    headers = ("feature", "name", "about", "activation", "change without it", "predicted")
    return (
        heading(repr(found.target.text) + against, behind)
        + table(headers, rows)
        + small([found.claim, *found.warnings])
    )


@to_html.register
def _suggestion(one: Suggestion) -> str:
    """Draw what was chosen, how it was tested, an answer with it, and why the others were not."""
    chosen = ", ".join(f"{feature.feature} {feature.name or _about(feature)}" for feature in one.chosen)
    parts = [heading(one.wish, chosen or "nothing found")]
    if one.trials:
        parts.append(_trials(one.trials, one.best))
    parts += [f"<p>{span(one.example)}</p>"] if one.example else []
    rejected = [
        (other.feature, other.name, _about(other), ", ".join(other.found_by), _largest_gain(other.curve), other.reason)
        for other in one.alternatives
    ]
    if rejected:
        parts.append(table(("not taken", "name", "about", "found by", "largest gain at first", "why"), rejected))
    return "".join(parts) + small([said for said in (one.note, one.test) if said])


@to_html.register
def _comparison(one: Comparison) -> str:
    """Answers side by side; what the default answer does not say is marked."""
    columns: dict[str, Sequence[ComparedAnswer]] = {"default": one.default, "steered": one.steered}
    if one.prompted is not None:
        columns["prompted"] = one.prompted
    rows = [[str(answers[0].seed), *map(_answer, answers)] for answers in zip(*columns.values(), strict=True)]
    return table_of_html(("seed", *columns), rows)


@to_html.register
def _receipt(one: Receipt) -> str:
    rows = [
        (
            item.feature or item.vector,
            item.name,
            item.description,
            item.site,
            item.op,
            "" if item.value is None else f"{item.value:g} {item.unit or ''}",
            item.value_act,
            f"{item.tokens.prompt} + {item.tokens.generated}",
            item.dose.mean if item.dose else None,
        )
        for item in one.interventions
    ]
    headers = ("moved", "name", "about", "site", "op", "value", "in act", "tokens (prompt + generated)", "mean dose")
    fired = [f"rule {fired.rule} held at token {fired.token} of answer {fired.choice}" for fired in one.fired]
    return table(headers, rows) + small([*fired, *one.warnings])


@to_html.register
def _variants(found: VariantList) -> str:
    rows = [
        (one.id, one.version.rpartition("@")[2], one.description, "feature book" if one.read_only else "")
        for one in found.data
    ]
    return table(("model", "version", "description", "from"), rows)


def _answer(answer: ComparedAnswer) -> str:
    own = {token for change in answer.differences for token in range(*change.own)}
    text = "".join(
        span(piece.text, "" if own.isdisjoint(range(piece.start, piece.end)) else ADDED)
        for piece in pieces(answer.tokens)
    )
    figures = {"KL": answer.kl, "perplexity": answer.perplexity, "repetition": answer.repetition}
    said = ", ".join(f"{name} {number(value)}" for name, value in figures.items() if value is not None)
    return f"{text}<br><small>{said}</small>"


def _heat(tokens: Sequence[InspectedToken], feature: InspectedFeature) -> str:
    acts = feature.acts or [0.0] * len(tokens)  # an older server gives none
    warmed = [
        warm(text, max(acts[start:end], key=abs), feature.max, FAINT if tokens[start].template else "")
        for start, end, text in pieces(tokens)
    ]
    return f"<p>{''.join(warmed)}</p>"


def _examples(examples: Sequence[Example]) -> str:
    largest = max(abs(example.peak_act) for example in examples)  # of either sign where the SAE has both
    rows = [
        [
            number(example.peak_act),
            "".join(
                warm(text, max(example.acts[start:end], key=abs), largest)
                for start, end, text in pieces(example.tokens)
            ),
        ]
        for example in examples[:MAX_EXAMPLES]
    ]
    return table_of_html(("activation", "text"), rows)


def _neighbours(neighbours: Sequence[Neighbour]) -> str:
    rows = [(one.feature, one.name, _about(one), one.cosine) for one in neighbours]
    return table(("feature", "name", "about", "cosine"), rows)


def _trials(trials: Sequence[SuggestedTrial], best: SuggestedTrial | None) -> str:
    rows = [
        (
            " + ".join(f"{strength:g} x {one}" for one, strength in zip(trial.features, trial.strengths, strict=True)),
            trial.gain,
            trial.control,
            trial.p,
            trial.perplexity,
            trial.repetition,
            "best" if trial == best else "works" if trial.works else "",
        )
        for trial in trials
    ]
    headers = (
        "tested (x max act)",
        "gain",
        "gain of random features",
        "p, corrected",
        "perplexity (x)",
        "repetition",
        "",
    )
    return table(headers, rows)


def _largest_gain(curve: Sequence[SuggestedPoint]) -> float | None:
    return max((point.gain for point in curve), default=None)


def _about(one: Described) -> str:
    """Say what a feature is about; an older server gives the label alone."""
    return one.description or (one.label.text if one.label else "")


def _quoted(tokens: Iterable[str]) -> str:
    return " ".join(map(repr, tokens))


def _range(bounds: tuple[float, float] | None) -> str:
    return f"{bounds[0]:g} to {bounds[1]:g}" if bounds else ""


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Tabulate plain values."""
    return table_of_html(headers, ([_shown(value) for value in row] for row in rows))


def table_of_html(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Tabulate what is HTML already."""
    head = "".join(f"<th style='{CELL}'>{escape(header)}</th>" for header in headers)
    body = "".join("<tr>" + "".join(f"<td style='{CELL}'>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def span(text: str, style: str = "", title: str = "") -> str:
    """Mark a piece of running text."""
    shown = escape(text).replace("\n", "↵<br>")
    hover = f' title="{escape(title)}"' if title else ""
    return f'<span style="{style}"{hover}>{shown}</span>' if style or hover else f"<span>{shown}</span>"


def warm(text: str, act: float, largest: float, otherwise: str = "") -> str:
    """
    Mark a token the more strongly, the nearer its activation is to the largest.

    otherwise: style of one that is not active
    """
    share = min(1.0, abs(act / largest)) if largest else 0.0
    return span(text, f"background:rgba({HUE},{share:.2f})" if act else otherwise, number(act) if act else "")


def heading(bold: str, rest: str = "") -> str:
    """Name what follows."""
    return f"<p style='margin:6px 0'><b>{escape(bold)}</b> {escape(rest)}</p>"


def small(lines: Iterable[str]) -> str:
    """Add remarks, a line each."""
    return "".join(f"<p><small>{escape(line)}</small></p>" for line in lines)


def number(value: float) -> str:
    """Write a measured number."""
    return f"{value:.3g}"


def _shown(value: object) -> str:
    return number(value) if isinstance(value, float) else "" if value is None else escape(str(value))


draw_answers_with(to_html)
