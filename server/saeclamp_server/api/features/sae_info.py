"""One SAE and its features, as the wire shows them: with feature book, labels and calibration curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from saeclamp.types import Example, Label, LabelsInfo, Neighbour, StoredFeature, StoredSAE, TokenLogit
from saeclamp_saes.labelling.table import Example as LabelledExample
from saeclamp_saes.labelling.table import Feature
from saeclamp_saes.labelling.table import TokenLogit as LabelledLogit
from saeclamp_saes.labelling.token_labels import tokens_of
from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_server.api.features.description import description
from saeclamp_server.served_sae import ServedSAE

Describe: TypeAlias = Callable[[str, int], str | None]
"""Describes a feature in words, given its SAE's name and its index."""
BOOK = "feature book"
"""Source of a label that the feature book gives."""


def sae_info(sae: ServedSAE) -> StoredSAE:
    """Describe an SAE."""
    summary, info = sae.entry.summary, sae.labels.info if sae.labels else None
    return StoredSAE(
        name=sae.entry.name,
        kind=summary.kind,
        architecture=summary.architecture,
        reads=tuple(map(str, summary.reads)),
        writes=tuple(map(str, summary.writes)),
        d_in=summary.d_in,
        d_out=summary.d_out,
        d_sae=summary.d_sae,
        unit=summary.unit,
        model=summary.model_name,
        sha256=f"sha256:{sae.entry.sha256}",
        approximation=summary.approximation,
        resid_norm=sae.norms.rounded_resid_norm if sae.norms.of_resid else None,
        fit=dict(sae.fit) if sae.fit else None,
        named=tuple(note.name for note in sae.entry.features.values()),
        labels=info
        and LabelsInfo(model=info.model, num_tokens=info.num_tokens, date=info.date, warnings=info.warnings),
    )


def feature_info(sae: ServedSAE, index: int, describe: Describe) -> StoredFeature:
    """
    Say all that is known of a feature.

    describe: its neighbours, by SAE and index
    Raises IndexError, and LabelError where its labels are damaged.
    """
    note = sae.entry.features.get(index)
    labelled = sae.labels[index] if sae.labels else None
    curve = sae.curves.get(index, {}).get("curve")
    return StoredFeature(
        feature=f"{sae.entry.name}/{index}",
        sae=sae.entry.name,
        index=index,
        name=note.name if note else None,
        labels=tuple(filter(None, (feature_book_label(note), *_said(labelled)))),
        description=_description(note, labelled),
        max_act=sae.max_act(index),
        green_zone=note.clamp if note else None,
        best=note.best if note else None,
        evidence=dict(note.evidence) if note and note.evidence else None,
        curve=tuple(curve) if curve is not None else None,
        **(_measured(sae, labelled, describe) if labelled else {}),
    )


def _measured(sae: ServedSAE, labelled: Feature, describe: Describe) -> dict[str, Any]:
    return {
        "density": labelled.density,
        "num_active": labelled.num_active,
        "top_act": labelled.top_act,
        "histogram": labelled.histogram,
        "output_score": labelled.output_score,
        "top_logits": _logits(labelled.top_logits),
        "bottom_logits": _logits(labelled.bottom_logits),
        "neighbours": tuple(
            Neighbour(
                feature=f"{sae.entry.name}/{one.index}",
                name=note.name if (note := sae.entry.features.get(one.index)) else None,
                description=describe(sae.entry.name, one.index),
                cosine=one.cosine,
            )
            for one in labelled.neighbours
        ),
        "examples": _examples(labelled.examples),
        "inactive": _examples(labelled.inactive),
    }


def feature_book_label(note: FeatureNote | None) -> Label | None:
    """Read what the feature book says of a feature."""
    return Label(text=note.description, source=BOOK) if note and note.description else None


def _description(note: FeatureNote | None, labelled: Feature | None) -> str | None:
    if labelled is None:
        return description(feature_book_label(note), (), ())
    # without prose the first one that was counted leads, whether it holds or not; none of the others does
    holds = [label for label in _said(labelled) if labelled.explanation is not None or label.source == labelled.kind]
    return description(
        feature_book_label(note) or next(iter(holds), None),
        tokens_of(labelled.input_label) if labelled.input_label else (),
        [logit.token for logit in labelled.top_logits or ()],
    )


def _said(labelled: Feature | None) -> list[Label]:
    """List labels: prose, then the counted one that holds, then the other counted ones."""
    if labelled is None:
        return []
    prose = labelled.explanation and Label(
        text=labelled.explanation, source=labelled.explanation_source or "unknown", score=labelled.explanation_score
    )
    counted = [
        Label(text=text, source=source, score=score)
        for source, text, score in (
            ("input", labelled.input_label, labelled.input_score),
            ("say", labelled.say_label, labelled.say_score),
            ("output", labelled.output_label, labelled.output_score),
        )
        if text is not None
    ]
    counted.sort(key=lambda label: label.source != labelled.kind)
    return [*([prose] if prose else []), *counted]


def _logits(logits: Sequence[LabelledLogit] | None) -> tuple[TokenLogit, ...] | None:
    return None if logits is None else tuple(TokenLogit(**asdict(logit)) for logit in logits)


def _examples(examples: Sequence[LabelledExample]) -> tuple[Example, ...]:
    shown = ("quantile", "tokens", "acts", "peak", "peak_act")
    return tuple(Example(**{name: getattr(example, name) for name in shown}) for example in examples)
