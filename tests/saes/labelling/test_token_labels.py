"""Features planted in a model without layers get the labels they were planted for; scores are those of a slow loop."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.support.tiny_labels import DEAD, SITE, Token, sae, settings, tokens_of
from tests.support.tiny_models import WIDTH, make
from tests.support.tiny_training import corpus, reader, tokenizer

from saeclamp_saes import SAE
from saeclamp_saes.labelling.run import run_labelling
from saeclamp_saes.labelling.table import LabelTable
from saeclamp_saes.labelling.token_labels import BARS, Candidate, best_candidate, output_label

ONE, BEFORE, MANY, RARE, DEAF = range(5)
"""Features, and the dimension of the stream that makes each active."""
CAPITALS, LOWER = "ABCDEFGH", "abcdefghijklmnopqrst"


def ids(letters: str) -> list[int]:
    return [int(token) for token in tokenizer()(letters).input_ids]


@torch.no_grad()
def planted_model() -> Any:
    """The stream is the token's embedding everywhere, and each planted feature has a dimension of it."""
    model = make("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.model.norm.weight.copy_(torch.linspace(0.5, 2.0, WIDTH))
    model.lm_head.weight.mul_(4.0)
    embedding = model.model.embed_tokens.weight
    embedding[:, :5] = 0.0
    for dimension, letters in ((ONE, "k"), (BEFORE, CAPITALS), (MANY, LOWER), (RARE, "~")):
        embedding[ids(letters), dimension] = 3.0
    return model


def planted_sae(model: Any) -> SAE:
    """Feature 2 fires on twenty letters and writes what makes the model say z; the others write nothing it notices."""
    W_dec = torch.zeros(5, WIDTH)
    W_dec[:, WIDTH - 1] = 1e-3
    gain, unembedding = model.model.norm.weight.detach(), model.lm_head.weight.detach()
    W_dec[MANY] = 50.0 * unembedding[ids("z")[0]] / gain
    W_enc = torch.zeros(WIDTH, 5)
    W_enc[range(5), range(5)] = 1.0
    threshold = torch.tensor([1.0, 1.0, 1.0, 1.0, 1e9])
    zeros = torch.zeros(5), W_dec, torch.zeros(WIDTH)
    return SAE((SITE,), (SITE,), W_enc, *zeros, threshold, architecture="jumprelu")


def planted_text(folder: Path) -> Path:
    """Capitals, always with a `!` behind them, among letters at random; and four `~`."""
    generator = random.Random(0)
    pieces = [*(f"{capital}!" for capital in CAPITALS), *LOWER, "k", *"0123456789"]
    texts = ["".join(generator.choices(pieces, k=60)) for _ in range(60)]
    texts[7] += "~~~~"
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> LabelTable:
    folder, model = tmp_path_factory.mktemp("planted"), planted_model()
    data = planted_text(folder / "data")
    return run_labelling(settings(folder / "labels.parquet", data), planted_sae(model), reader(model))


def test_a_feature_of_one_token_is_labelled_by_it(planted: LabelTable) -> None:
    row = planted[ONE]
    assert (row.kind, row.label, row.label_score) == ("input", 'token "k"', 1.0)
    assert (row.input_label, row.input_score) == (row.label, row.label_score)


def test_a_feature_before_one_token_says_it(planted: LabelTable) -> None:
    row = planted[BEFORE]
    assert (row.kind, row.label, row.label_score) == ("say", 'say "!"', 1.0)
    assert row.input_score is not None
    assert 0.6 < row.input_score < 0.9  # five of its eight tokens, each precisely: 2 * 5/8 / (1 + 5/8)


def test_a_feature_that_writes_an_unembedding_promotes_its_token(planted: LabelTable) -> None:
    row = planted[MANY]
    assert row.kind == "output"
    assert row.label == row.output_label == 'promotes "z"'
    assert row.top_logits is not None
    assert row.top_logits[0].token == "z"
    assert row.label_score == row.output_score > 0.9


def test_a_feature_that_is_nearly_never_active_is_not_labelled_by_what_it_reads(planted: LabelTable) -> None:
    row = planted[RARE]
    assert (row.kind, row.label, row.label_score, row.num_active) == ("none", None, None, 4)
    assert (row.input_label, row.input_score, row.say_label, row.say_score) == (None, None, None, None)
    assert row.output_label is None
    assert row.output_score is not None


def test_a_dead_feature_has_no_label_and_no_score(planted: LabelTable) -> None:
    row = planted[DEAF]
    assert (row.kind, row.output_score, row.output_label, row.max_act) == ("none", None, None, None)
    assert row.top_logits is not None


class Half(NamedTuple):
    """One feature in one half of the text."""

    mass: dict[int, float]
    """By the token it is on"""
    next_mass: dict[int, float]
    """By the token that follows"""
    active: dict[int, int]
    occurs: dict[int, int]


def half_of(sequences: list[list[Token]], index: int, side: int) -> Half:
    half = Half({}, {}, {}, {})
    for sequence in sequences[side::2]:
        for place, token in enumerate(sequence):
            if not token.counts:
                continue
            half.occurs[token.id] = half.occurs.get(token.id, 0) + 1
            act = token.acts[index]
            if act > 0:
                half.mass[token.id] = half.mass.get(token.id, 0.0) + act
                half.active[token.id] = half.active.get(token.id, 0) + 1
                if place + 1 < len(sequence):
                    following = sequence[place + 1].id
                    half.next_mass[following] = half.next_mass.get(following, 0.0) + act
    return half


def input_score(half: Half, tokens: list[int]) -> float:
    recall = sum(half.mass.get(token, 0.0) for token in tokens) / sum(half.mass.values())
    precision = sum(half.active.get(token, 0) for token in tokens) / max(1, sum(half.occurs.get(t, 0) for t in tokens))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_labels_are_chosen_on_even_sequences_and_scored_on_odd_ones(tmp_path: Path) -> None:
    data, of = corpus(tmp_path / "data"), sae()
    found = run_labelling(settings(tmp_path / "labels.parquet", data), of, reader())
    sequences = tokens_of(reader(), of, data)
    strings = {token: tokenizer().decode([token]) for token in range(97)}
    unlike = 0
    for row in found:
        if row.index == DEAD:
            continue
        chosen_on, scored_on = (half_of(sequences, row.index, side) for side in (0, 1))

        def worth(token: int, half: Half = chosen_on) -> float:
            return half.mass[token] * half.active[token] / half.occurs[token]

        ordered = sorted(chosen_on.mass, key=lambda token: -worth(token))[:5]
        sizes = [input_score(chosen_on, ordered[:size]) for size in range(1, len(ordered) + 1)]
        chosen = ordered[: sizes.index(max(sizes)) + 1]
        said = max(chosen_on.next_mass, key=chosen_on.next_mass.__getitem__)
        assert row.input_label == "token " + ", ".join(json.dumps(strings[token]) for token in chosen)
        assert row.input_score == pytest.approx(input_score(scored_on, chosen), rel=1e-3, abs=1e-6)
        assert row.say_label == f"say {json.dumps(strings[said])}"
        share = scored_on.next_mass.get(said, 0.0) / sum(scored_on.next_mass.values())
        assert row.say_score == pytest.approx(share, rel=1e-3, abs=1e-6)
        unlike += row.input_score != pytest.approx(input_score(chosen_on, chosen), rel=1e-3)
    assert unlike > 10


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        ({"input": 0.6, "say": 0.7, "output": 0.5}, "say"),
        ({"input": 0.6, "say": 0.5, "output": 0.95}, "output"),
        ({"input": 0.49, "say": 0.49, "output": 0.1}, "output"),
        ({"input": 0.49, "say": 0.49, "output": 0.09}, "none"),
        ({"input": None, "say": None, "output": None}, "none"),
        ({"input": 0.5, "say": None, "output": None}, "input"),
    ],
)
def test_of_the_labels_that_pass_their_bar_the_best_holds(scores: dict[Any, float | None], kind: str) -> None:
    assert BARS == {"input": 0.5, "say": 0.5, "output": 0.1}
    candidates = {name: None if score is None else Candidate("x", score) for name, score in scores.items()}
    assert best_candidate(candidates) == kind


@pytest.mark.parametrize(("before", "holds"), [(0.0, True), (0.24, True), (0.25, False), (0.6, False)])
def test_what_was_as_likely_without_the_feature_is_not_promoted(before: float, holds: bool) -> None:
    expected = Candidate('promotes " a", "\\n"', 0.5) if holds else None
    assert output_label([" a", "\n"], 0.5, before) == expected
    assert output_label([" a"], float("nan"), 0.0) is None
