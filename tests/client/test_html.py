"""Answers draw themselves in notebooks: everything is there, nothing is fetched, and no text of others is obeyed."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from saeclamp import Attribution, Comparison, Contrasted, FeatureHits, Inspection, Receipt
from saeclamp.types import Answer, Neighbourhoods, StoredFeature, StoredVectors, Suggestion, VariantList

EVIL = "<script>alert('x')</script>\" onload=\"x\n"
LABEL = {"text": EVIL, "source": EVIL, "score": 0.5}
FEATURE = {"feature": f"s/{EVIL}", "sae": "s", "index": 3, "name": EVIL, "label": LABEL}
MEANS = {"positive": 2.0, "negative": 0.0, "difference": 2.0}
TOKEN = {"id": 1, "text": EVIL, "logprob": -1.0}
COMPARED = {"id": 1, "text": EVIL, "logprob": -1.0, "default_logprob": -2.0, "kl": 0.3}
ANSWER = {"seed": 0, "text": EVIL, "tokens": [COMPARED], "kl": 0.3, "perplexity": 7.0, "repetition": 0.1}
CHANGED = {**ANSWER, "differences": [{"op": "insert", "default": [0, 0], "own": [0, 1]}]}
POINT = {"strength": 0.75, "gain": 0.2, "perplexity": 1.5, "repetition": 0.1}
TRIAL = {
    "features": [f"s/{EVIL}"],
    "strengths": [0.75],
    "gain": 0.2,
    "control": 0.01,
    "p_baseline": 0.001,
    "p_controls": 0.0001,
    "p": 0.004,
    "perplexity": 1.5,
    "repetition": 0.1,
    "works": True,
}
PAIR = {**TRIAL, "features": [f"s/{EVIL}", "s/4"], "strengths": [0.5, 0.7], "gain": 0.1, "reason": EVIL}

ANSWERS: list[Answer] = [
    Inspection.model_validate(
        {
            "tokens": [
                {"position": 0, "id": 1, "text": EVIL, "template": True},
                {"position": 1, "id": 2, "text": " sea", "top": {"s": [{"index": 3, "act": 2.0}]}},
                {"position": 2, "id": 2, "text": EVIL, "features": {f"s/{EVIL}": 4.0}},
            ],
            "features": [
                {**FEATURE, "max": 4.0, "mean": 1.0, "frequency": 0.5, "position": 2, "acts": [0.0, 2.0, 4.0]}
            ],
            "aggregate": "max",
            "num_counted": 2,
            "warnings": [EVIL],
        }
    ),
    FeatureHits.model_validate(
        {"data": [{**FEATURE, "tokens": [EVIL], "green_zone": [0.5, 1]}], "num_found": 1, "note": EVIL}
    ),
    Contrasted.model_validate(
        {
            "data": [
                {
                    **FEATURE,
                    "positive": 2.0,
                    "negative": 0.0,
                    "difference": 2.0,
                    "effect": 1.0,
                    "p": 0.01,
                    "significant": True,
                }
            ],
            "num_features": 1,
            "num_significant": 1,
            "test": EVIL,
        }
    ),
    Attribution.model_validate(
        {
            "target": TOKEN,
            "against": TOKEN,
            "position": 3,
            "metric": "logprob",
            "value": -1.0,
            "data": [{**FEATURE, "act": 1.0, "position": 1, "change": -0.5, "predicted": -0.4}],
            "pairs": [],
            "together": {
                "num_features": 1,
                "num_active": 1,
                "change": -0.5,
                "sum_of_changes": -0.5,
                "predicted": -0.4,
                "share_explained": 0.9,
            },
            "claim": EVIL,
        }
    ),
    Comparison.model_validate({"default": [ANSWER], "steered": [CHANGED], "prompted": [CHANGED], "receipts": []}),
    Receipt.model_validate(
        {
            "applied": True,
            "spec": "x",
            "model": "m",
            "sae": {},
            "interventions": [
                {
                    "feature": f"s/{EVIL}",
                    "name": EVIL,
                    "layer": 3,
                    "site": "resid_post 3",
                    "op": "clamp",
                    "value": 1.0,
                    "unit": "act",
                    "value_act": 1.0,
                    "tokens": {"prompt": 3, "generated": 4},
                    "dose": {"mean": 0.25, "max": 0.5},
                }
            ],
            "fired": [{"rule": EVIL, "choice": 0, "token": 7, "value": 1.0}],
            "warnings": [EVIL],
        }
    ),
    StoredFeature.model_validate(
        {
            **FEATURE,
            "labels": [LABEL],
            "density": 0.01,
            "max_act": 4.0,
            "green_zone": [0.5, 1],
            "top_logits": [{"token": EVIL, "id": 1, "value": 2.0}],
            "neighbours": [{**FEATURE, "cosine": 0.25}],
            "examples": [
                {"quantile": 9, "tokens": [EVIL, " sea"], "acts": [0.0, 3.0], "peak": 1, "peak_act": 3.0},
                {"quantile": 5, "tokens": [" a", EVIL], "acts": [0.0, 1.5], "peak": 1, "peak_act": 1.5},
            ],
        }
    ),
    Neighbourhoods.model_validate({"data": [{**FEATURE, "neighbours": [{**FEATURE, "cosine": 0.25}]}]}),
    Suggestion.model_validate(
        {
            "wish": EVIL,
            "outcome": "found",
            "steering": {"interventions": []},
            "chosen": [{**FEATURE, "found_by": ["search"], "curve": [POINT, {**POINT, "strength": 1.5}]}],
            "best": TRIAL,
            "trials": [TRIAL, PAIR],
            "num_tried": 9,
            "test": EVIL,
            "example": EVIL,
            "alternatives": [{**FEATURE, "found_by": [EVIL], "reason": EVIL}],
            "note": EVIL,
        }
    ),
    VariantList.model_validate(
        {
            "data": [
                {
                    "id": f"m:{EVIL}",
                    "version": f"m:{EVIL}@0123456789ab",
                    "name": EVIL,
                    "base": "m",
                    "steering": {},
                    "description": EVIL,
                    "meaning": "sha256:0",
                    "sha256": "0",
                    "created": 0,
                    "read_only": True,
                }
            ]
        }
    ),
]


class Seen(HTMLParser):
    """What a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_no_text_of_others_is_obeyed_and_nothing_is_fetched(answer: Any) -> None:
    seen = Seen(answer._repr_html_())
    assert set(seen.tags) <= {"table", "tr", "th", "td", "p", "b", "br", "span", "small"}
    assert {name for name, _ in seen.attributes} <= {"style", "title"}
    assert not any("url(" in (value or "") for _, value in seen.attributes)
    assert "<script>alert('x')</script>" in seen.text


def test_a_heat_map_is_as_warm_as_activations_are_large() -> None:
    html = str(ANSWERS[0]._repr_html_())
    assert 'rgba(230,159,0,0.50)" title="2"> sea</span>' in html
    assert 'rgba(230,159,0,1.00)" title="4"' in html


def test_what_the_default_answer_does_not_say_is_marked() -> None:
    html = str(ANSWERS[4]._repr_html_())
    assert html.count("background:rgba(0,114,178,.18)") == 2
    assert "KL 0.3, perplexity 7, repetition 0.1" in html


def test_a_heat_map_shows_a_feature_at_every_token_where_it_is_active() -> None:
    tokens = [{"position": position, "id": 1, "text": f" w{position}"} for position in range(4)]
    feature = {"feature": "s/3", "sae": "s", "index": 3, "max": 4.0, "mean": 1.5, "frequency": 0.75, "position": 3}
    drawn = Inspection.model_validate(
        {
            "tokens": tokens,
            "features": [{**feature, "acts": [0.0, 1.0, 2.0, 4.0]}],
            "aggregate": "max",
            "num_counted": 4,
        }
    )._repr_html_()
    assert drawn is not None
    strengths = [f"rgba(230,159,0,{share})" in drawn for share in ("0.25", "0.50", "1.00")]
    assert (strengths, drawn.count("rgba(230")) == ([True] * 3, 3)


def test_the_examples_of_a_feature_are_as_warm_as_the_strongest_of_them() -> None:
    html = str(ANSWERS[6]._repr_html_())
    assert 'rgba(230,159,0,1.00)" title="3"> sea</span>' in html
    assert 'rgba(230,159,0,0.50)" title="1.5"' in html


def test_the_examples_of_a_feature_of_either_sign_are_as_warm_as_the_farthest_from_zero() -> None:
    examples = [
        {"quantile": 9, "tokens": [" sea"], "acts": [1.5], "peak": 0, "peak_act": 1.5},
        {"quantile": 8, "tokens": [" gull"], "acts": [-3.0], "peak": 0, "peak_act": -3.0},
    ]
    bare = ANSWERS[6].model_dump() | {"examples": examples}
    html = str(StoredFeature.model_validate(bare)._repr_html_())
    assert '1.00)" title="-3"> gull</span>' in html
    assert '0.50)" title="1.5"> sea</span>' in html


def test_a_suggestion_says_which_steering_is_the_best_and_why_others_were_not_taken() -> None:
    seen = Seen(str(ANSWERS[8]._repr_html_()))
    assert ("best" in seen.text, "works" in seen.text, "why" in seen.text) == (True, True, True)
    assert "0.7 x s/4" in seen.text
    nothing = Suggestion(wish="zux", outcome="nothing_found", steering=None, num_tried=8, note="Nothing found: none.")
    assert "nothing found" in Seen(str(nothing._repr_html_())).text


def test_a_feature_without_a_label_is_described_by_its_tokens_in_every_drawing() -> None:
    bare = {"feature": "s/4", "sae": "s", "index": 4, "description": 'active on " reef"'}
    drawn: list[Answer] = [
        Inspection.model_validate(
            {
                "tokens": [],
                "features": [{**bare, "max": 1.0, "mean": 1.0, "frequency": 1.0}],
                "aggregate": "max",
                "num_counted": 1,
            }
        ),
        FeatureHits.model_validate({"data": [bare], "num_found": 1}),
        StoredFeature.model_validate(bare),
        Neighbourhoods.model_validate({"data": [{"feature": "s/1", "neighbours": [{**bare, "cosine": 0.5}]}]}),
        Suggestion.model_validate(
            {
                "wish": "w",
                "outcome": "nothing_found",
                "steering": None,
                "num_tried": 4,
                "alternatives": [{**bare, "found_by": ["search"], "reason": "no"}],
            }
        ),
    ]
    for answer in drawn:
        assert 'active on " reef"' in Seen(str(answer._repr_html_())).text, type(answer).__name__


def test_an_answer_that_has_no_drawing_shows_as_text() -> None:
    assert StoredVectors(data=())._repr_html_() is None
