"""The words and texts that tell whether an answer is about a feature: the user's, else what the labels show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from saeclamp_server.calibration.text_metrics import WORD, WordSet, tokenize_words

if TYPE_CHECKING:
    from saeclamp_saes.labelling.table import Example, Feature, LabelTable

NUM_EXAMPLES = 20
"""Of a feature's strongest examples, that words and texts are taken from."""
ACTIVE_SHARE = 0.5
"""Of an example's peak, from which on the feature counts as active on a word."""
MIN_EXAMPLES = 2
"""In which it must be active on a word: once is chance."""
MIN_LIFT = 5
"""How many times as common a word must be in its examples as in those of other features."""
NUM_BACKGROUND = 300
"""Features, of each of which one example is read for that."""
NUM_WORDS = 10
"""Of each kind that are taken from labels, at most: those it is active on, and those it promotes."""
MIN_LETTERS = 3
MIN_LETTERS_PROMOTED = 4
"""Shorter ones are too common to tell anything, above all as beginnings."""
COMMON_SHARE = 0.1
"""Of the unsteered answers, from which on a word taken from labels is a common one."""

WordsFrom = Literal["--concept", "labels"]
TextsFrom = Literal["labels", "description"]


@dataclass(frozen=True)
class Concept:
    """What answers are compared with."""

    words: tuple[str, ...]
    """Empty: hits are not counted."""
    words_from: WordsFrom | None
    texts: tuple[str, ...]
    """Empty: similarity is not measured."""
    texts_from: TextsFrom | None

    @classmethod
    def build(
        cls, given: WordSet | None, description: str | None, label: Feature | None, background: Sequence[str] = ()
    ) -> Concept:
        """
        Collect what there is.

        given:       the user's words, which go before those of the labels
        description: of the feature book, which stands in for examples where there are none
        label:       the feature's row in the table of labels
        background:  texts of other features, from `background_of`
        """
        words = given.words if given else label_words(label, background) if label else ()
        texts = tuple("".join(example.tokens).strip() for example in _strongest(label)) if label else ()
        words_from: WordsFrom | None = "--concept" if given else "labels" if words else None
        if texts or description is None:
            return cls(words, words_from, texts, "labels" if texts else None)
        return cls(words, words_from, (description,), "description")

    def telling_words(self, unsteered: Sequence[str]) -> WordSet | None:
        """
        Leave out words of the labels that unsteered answers hold anyhow; the user's stay. None where no word is left.

        unsteered: the answers' texts
        """
        words = self.words
        if self.words_from == "labels":
            words = tuple(word for word in words if not _is_common(word, unsteered))
        return WordSet(words) if words else None


def background_texts(labels: LabelTable) -> list[str]:
    """Read the strongest example of some features, evenly spread over the table."""
    step = -(-len(labels) // NUM_BACKGROUND)
    rows = (labels[index] for index in range(0, len(labels), step))
    return ["".join(example.tokens) for row in rows for example in _strongest(row)[:1]]


def label_words(label: Feature, background: Sequence[str] = ()) -> tuple[str, ...]:
    """
    Take words from a feature's row: those it is active on, then the beginnings that it promotes, with a `*`.

    background: texts in which those words must be rarer
    returns:    lowercase, the commonest first
    """
    examples = _strongest(label)
    counts = Counter(word for example in examples for word in _active_words(example))
    own = {"".join(example.tokens) for example in examples}
    others = [text for text in background if text not in own]
    known = Counter(word for text in others for word in set(tokenize_words(text)))
    read = [
        word
        for word, count in counts.most_common()
        if count >= MIN_EXAMPLES
        and len(word) >= MIN_LETTERS
        and count / len(examples) >= MIN_LIFT * known[word] / max(1, len(others))
    ]
    # a token with a blank before it begins a word, and need not be all of it
    begun = [item.token.strip().lower() for item in label.top_logits or () if item.token[:1].isspace()]
    promoted = [f"{word}*" for word in begun if word.isalpha() and len(word) >= MIN_LETTERS_PROMOTED]
    return tuple(dict.fromkeys([*[word for word in read if not word.isdigit()][:NUM_WORDS], *promoted[:NUM_WORDS]]))


def _strongest(label: Feature) -> Sequence[Example]:
    return sorted(label.examples, key=lambda example: -example.peak_act)[:NUM_EXAMPLES]


def _active_words(example: Example) -> list[str]:
    """Find the words on some token of which the feature is about as active as at the peak: each once, in their order."""
    ends = list(accumulate(len(token) for token in example.tokens))
    active = {
        position
        for token, end, act in zip(example.tokens, ends, example.acts, strict=True)
        if act >= ACTIVE_SHARE * example.peak_act
        for position in range(end - len(token.lstrip()), end)
    }
    words = WORD.finditer("".join(example.tokens))
    found = (match[0].lower() for match in words if active.intersection(range(*match.span())))
    return list(dict.fromkeys(found))


def _is_common(word: str, texts: Sequence[str]) -> bool:
    words = WordSet([word])
    return sum(words.found_in(text) for text in texts) > COMMON_SHARE * len(texts)
