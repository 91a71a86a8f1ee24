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
"""Strongest examples of a feature that words and texts are taken from."""
ACTIVE_SHARE = 0.5
"""Share of an example's peak activation from which on the feature counts as active on a word."""
MIN_EXAMPLES = 2
"""Examples in which the feature must be active on a word: once is chance."""
MIN_LIFT = 5
"""Ratio by which a word must be more common in the feature's examples than in those of other features."""
NUM_BACKGROUND = 300
"""Other features that are read for `MIN_LIFT`, one example each."""
NUM_WORDS = 10
"""Words of each kind that are taken from labels, at most: those the feature is active on, and those it promotes."""
MIN_LETTERS = 3
MIN_LETTERS_PROMOTED = 4
"""Letters of a word. Shorter ones are too common to tell anything, above all as beginnings."""
COMMON_SHARE = 0.1
"""Share of the unsteered answers from which on a word of the labels is a common one, and left out."""

WordsFrom = Literal["--concept", "labels"]
TextsFrom = Literal["labels", "description"]


@dataclass(frozen=True)
class Concept:
    """Words and texts that answers are compared with."""

    words: tuple[str, ...]
    """Words of the concept; empty: hits are not counted."""
    words_from: WordsFrom | None
    texts: tuple[str, ...]
    """Texts about the concept; empty: similarity is not measured."""
    texts_from: TextsFrom | None

    @classmethod
    def build(
        cls, given: WordSet | None, description: str | None, label: Feature | None, background: Sequence[str] = ()
    ) -> Concept:
        """
        Collect the words and texts that there are.

        given:       the user's words, used instead of those of the labels
        description: of the feature book, which stands in for examples where there are none
        label:       the feature's row in the table of labels
        background:  texts of other features, from `background_texts`
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
    """Return the strongest example of each of some features, evenly spread over the table."""
    step = -(-len(labels) // NUM_BACKGROUND)  # rounded up, so that there are no more
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
    # the feature's own examples may be among the background
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
    """Find the words with a token at which the feature is about as active as at the peak: each once, in their order."""
    ends = list(accumulate(len(token) for token in example.tokens))
    active = {
        position
        for token, end, act in zip(example.tokens, ends, example.acts, strict=True)
        if act >= ACTIVE_SHARE * example.peak_act
        # without the blank before a word, which would touch the word before
        for position in range(end - len(token.lstrip()), end)
    }
    words = WORD.finditer("".join(example.tokens))
    found = (match[0].lower() for match in words if active.intersection(range(*match.span())))
    return list(dict.fromkeys(found))


def _is_common(word: str, texts: Sequence[str]) -> bool:
    words = WordSet([word])
    return sum(words.found_in(text) for text in texts) > COMMON_SHARE * len(texts)
