"""Figures and examples of features are those of a slow loop over every token."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.tiny_labels import D_SAE, DEAD, SITE, Token, sae, settings, tokens_of
from tests.support.tiny_training import LETTERS, corpus, reader

from saeclamp_saes import SAE, Site
from saeclamp_saes.errors import LabelError, SAEError
from saeclamp_saes.labelling.activation_index import ActivationIndex, build_index
from saeclamp_saes.labelling.examples import (
    AFTER,
    BEFORE,
    IN_EACH,
    IN_TOP,
    NUM_INACTIVE,
    inactive_examples,
    top_examples,
)
from saeclamp_saes.labelling.feature_rows import HISTOGRAM_BINS
from saeclamp_saes.labelling.run import run_labelling
from saeclamp_saes.labelling.table import LabelTable
from saeclamp_saes.lm.harvest import ActivationReader
from saeclamp_saes.progress import no_progress
from saeclamp_saes.sae import TopK


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sequences(data: Path) -> list[list[Token]]:
    return tokens_of(reader(), sae(), data)


@pytest.fixture(scope="module")
def labels(data: Path, tmp_path_factory: pytest.TempPathFactory) -> LabelTable:
    return run_labelling(settings(tmp_path_factory.mktemp("out") / "labels.parquet", data), sae(), reader())


def positives(sequences: list[list[Token]], index: int) -> list[tuple[float, Token]]:
    return [(token.acts[index], token) for sequence in sequences for token in sequence if token.acts[index] > 0]


def test_counts_and_maxima_are_those_of_every_token(labels: LabelTable, sequences: list[list[Token]]) -> None:
    num_tokens = sum(token.counts for sequence in sequences for token in sequence)
    assert labels.info.num_tokens == num_tokens > 2000
    assert len(labels) == D_SAE
    for row in labels:
        values = sorted(value for value, _ in positives(sequences, row.index))
        assert row.num_active == len(values)
        assert row.density == pytest.approx(len(values) / num_tokens)
        if row.index == DEAD:
            assert (row.max_act, row.top_act, row.examples, row.kind) == (None, None, (), "none")
            continue
        place = 0.999 * (len(values) - 1)
        low = math.floor(place)
        high = min(low + 1, len(values) - 1)
        assert row.max_act == pytest.approx(values[low] + (place - low) * (values[high] - values[low]), rel=1e-4)
        assert row.top_act == pytest.approx(values[-1], rel=1e-4)


def text_of(token: Token) -> str:
    return {0: "<s>", 1: "</s>"}.get(token.id) or LETTERS[token.id - 2]


def test_examples_show_the_text_and_every_activation(labels: LabelTable, sequences: list[list[Token]]) -> None:
    shown = 0
    for row in labels:
        found = positives(sequences, row.index)
        for example in row.examples:
            shown += 1
            # other places may have nearly the same activation
            pieces = [
                (sequences[token.sequence][max(0, token.position - BEFORE) : token.position + AFTER + 1], token)
                for value, token in found
                if value == pytest.approx(example.peak_act, rel=1e-4)
            ]
            ((piece, peak),) = [pair for pair in pieces if tuple(map(text_of, pair[0])) == example.tokens]
            assert example.acts == pytest.approx([token.acts[row.index] for token in piece], rel=1e-4, abs=1e-4)
            assert example.acts[example.peak] == example.peak_act > 0
            assert example.peak == min(BEFORE, peak.position)
            assert example.document == peak.document
    assert shown > 20 * IN_TOP


def test_a_histogram_counts_every_activation_in_bins_of_equal_width(
    labels: LabelTable, sequences: list[list[Token]]
) -> None:
    counted = 0
    for row in labels:
        values = [value for value, _ in positives(sequences, row.index)]
        if not values:
            assert row.histogram is None
            continue
        assert row.histogram is not None
        assert row.top_act is not None
        assert (len(row.histogram), sum(row.histogram)) == (HISTOGRAM_BINS, row.num_active)
        width = row.top_act / HISTOGRAM_BINS
        for number, count in enumerate(row.histogram):
            # values of the loop and of the run differ in the last digits, so those near an edge may be on either side
            inside = [value for value in values if width * (number + 1e-4) < value < width * (number + 1 - 1e-4)]
            around = [value for value in values if width * (number - 1e-4) < value < width * (number + 1 + 1e-4)]
            assert len(inside) <= count <= len(around)
        counted += 1
    assert counted > 10


def test_examples_come_from_ten_quantiles_of_equal_count(labels: LabelTable, sequences: list[list[Token]]) -> None:
    for row in labels:
        values = sorted(value for value, _ in positives(sequences, row.index))
        for example in row.examples:
            rank = min(range(len(values)), key=lambda rank: abs(values[rank] - example.peak_act))
            assert example.quantile == 10 * rank // len(values)


def test_the_strongest_come_first_and_from_sequences_of_their_own(
    labels: LabelTable, sequences: list[list[Token]]
) -> None:
    full = 0
    for row in labels:
        strongest: dict[int, float] = {}
        found = sorted(positives(sequences, row.index), key=lambda pair: -pair[0])
        for value, token in found[: len(found) // 10]:
            strongest.setdefault(token.sequence, value)
        if len(strongest) >= IN_TOP:
            full += 1
            got = [example.peak_act for example in row.examples if example.quantile == 9]
            assert got == pytest.approx(list(strongest.values())[:IN_TOP], rel=1e-4)
        assert [example.quantile for example in row.examples] == sorted(
            (example.quantile for example in row.examples), reverse=True
        )
        for quantile in range(9):
            acts = [example.peak_act for example in row.examples if example.quantile == quantile]
            assert acts == sorted(acts, reverse=True)
            assert len(acts) <= IN_EACH
    assert full > 10


def test_common_features_have_all_their_examples_from_different_sequences(labels: LabelTable, data: Path) -> None:
    most = max(labels, key=lambda row: row.num_active)
    assert len(most.examples) == IN_TOP + 9 * IN_EACH
    assert len({example.tokens for example in most.examples}) == len(most.examples)


def test_inactive_pieces_show_the_text_where_the_feature_is_active_on_no_token(
    labels: LabelTable, sequences: list[list[Token]]
) -> None:
    """A rare feature has all 14 pieces; one that is active on half of the tokens has some."""
    windows: dict[tuple[int, tuple[str, ...]], list[tuple[list[Token], Token]]] = {}
    for sequence in sequences:
        for token in sequence:
            window = sequence[max(0, token.position - BEFORE) : token.position + AFTER + 1]
            if token.counts:
                windows.setdefault((token.document, tuple(map(text_of, window))), []).append((window, token))
    for row in labels:
        seen: set[tuple[int, int]] = set()
        for piece in row.inactive:
            ((window, peak),) = windows[piece.document, piece.tokens]
            assert (piece.quantile, piece.peak, piece.peak_act) == (-1, min(BEFORE, peak.position), 0.0)
            assert [token.acts[row.index] for token in window] == list(piece.acts) == [0.0] * len(window)
            places = {(token.sequence, token.position) for token in window}
            assert not seen & places
            seen |= places
        assert NUM_INACTIVE >= len(row.inactive) >= (NUM_INACTIVE if row.density < 0.2 else 1)


def firings(starts: list[int], token: list[int], value: list[float]) -> ActivationIndex:
    num = starts[-1]
    return ActivationIndex(
        ids=np.arange(num),
        counts=np.ones(num, bool),
        starts=np.array(starts),
        documents=np.arange(len(starts) - 1),
        quotable=np.ones(len(starts) - 1, bool),
        offsets=np.array([0, len(token)]),
        token=np.array(token),
        value=np.array(value, np.float32),
    )


def test_pieces_of_one_sequence_do_not_overlap() -> None:
    """All of it in one sequence: peaks 18 tokens apart would share a token, and 19 apart do not."""
    text = firings([0, 100], [10, 28, 29, 60], [9.0, 8.0, 7.0, 6.0])
    found = top_examples(text, text[0], str)
    assert [int(example.tokens[example.peak]) for example in found] == [10, 29, 60]


def test_another_sequence_is_preferred_to_a_stronger_place_in_the_same() -> None:
    tokens = [50, 150, *range(200, 220)]
    text = firings([0, 100, 200, 300], tokens, [1.0, 2.0, *(float(n) for n in range(20, 40))])
    found = top_examples(text, text[0], str)
    assert [int(example.tokens[example.peak]) for example in found if example.quantile == 9] == [219]
    assert {int(example.tokens[example.peak]) for example in found} == {50, 150, 219}


def test_pieces_are_cut_where_their_sequence_begins_and_ends() -> None:
    text = firings([0, 5, 10], [5, 9], [1.0, 2.0])
    for example in top_examples(text, text[0], str):
        assert example.tokens == ("5", "6", "7", "8", "9")
        assert example.acts == (1.0, 0.0, 0.0, 0.0, 2.0)


def test_a_sequence_that_may_not_be_quoted_is_never_shown_and_still_counts_for_the_quantiles() -> None:
    """Twenty tokens, two a quantile; the second sequence holds the stronger half."""
    text = firings([0, 100, 200], [*range(0, 100, 10), *range(100, 200, 10)], [float(n) for n in range(1, 21)])
    text = replace(text, quotable=np.array([True, False]))
    found = top_examples(text, text[0], str)
    assert {example.quantile: example.peak_act for example in found} == {4: 10.0, 3: 8.0, 2: 6.0, 1: 4.0, 0: 2.0}
    assert {piece.document for piece in inactive_examples(text, text[0], str, 0)} <= {0}
    nothing = replace(text, quotable=np.zeros(2, bool))
    assert top_examples(nothing, nothing[0], str) == inactive_examples(nothing, nothing[0], str, 0) == ()


def test_figures_are_of_all_the_data_and_examples_of_what_may_be_quoted(
    labels: LabelTable, data: Path, tmp_path: Path
) -> None:
    """The second of two files, of 30 documents each; it is named by another path."""
    quoting = settings(tmp_path / "labels.parquet", data, quote=(data / ".." / data.name / "b.jsonl",))
    found = run_labelling(quoting, sae(), reader())
    assert found.info.settings["quoted"] == ["b.jsonl"]
    assert labels.info.settings["quoted"] == []
    unlike = ("examples", "inactive")
    assert found.table.drop(unlike).equals(labels.table.drop(unlike))
    shown = {piece.document for row in found for piece in (*row.examples, *row.inactive)}
    assert shown == set(range(30, 60))


def test_what_may_be_quoted_is_among_the_data(data: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("cats")
    with pytest.raises(LabelError, match=r"other\.txt cannot be quoted: it is not among the data"):
        run_labelling(settings(tmp_path / "labels.parquet", data, quote=(tmp_path / "other.txt",)), sae(), reader())


def test_a_feature_that_is_active_on_every_token_has_no_inactive_piece() -> None:
    everywhere = firings([0, 100, 200], list(range(200)), [1.0] * 200)
    assert inactive_examples(everywhere, everywhere[0], str, 0) == ()


def test_inactive_pieces_lie_around_tokens_that_count_and_away_from_the_feature() -> None:
    """Active on 0 to 99 and on 150; of the others, 120 to 129 do not count, and all of 200 to 299."""
    text = firings([0, 100, 200, 300], [*range(100), 150], [1.0] * 101)
    counts = text.counts.copy()
    counts[120:130] = counts[200:] = False
    found = inactive_examples(replace(text, counts=counts), text[0], str, 0)
    peaks = [int(piece.tokens[piece.peak]) for piece in found]
    assert len(peaks) >= 3
    allowed = {*range(100, 120), *range(130, 150 - AFTER), *range(150 + BEFORE + 1, 200)}
    assert set(peaks) <= allowed
    assert {piece.document for piece in found} == {1}


def test_inactive_pieces_depend_on_the_feature_and_its_index_alone() -> None:
    alone = firings([0, 5000], [7, 400], [1.0, 2.0])
    beside = replace(alone, offsets=np.array([0, 2, 5]), token=np.array([7, 400, 1, 2, 3]), value=np.ones(5))
    found = inactive_examples(alone, alone[0], str, 0)
    assert found == inactive_examples(beside, beside[0], str, 0)
    assert found != inactive_examples(alone, alone[0], str, 1)
    assert len(found) == NUM_INACTIVE


def record(
    folder: Path,
    of: SAE,
    reader: ActivationReader,
    data: Path,
    tokens: int = 10**6,
    limit: float = 1e9,
    **sizes: int,
) -> ActivationIndex:
    limits = torch.full((len(reader.sites),), limit)
    return build_index(folder, of, reader, [data / "b.jsonl"], limits, tokens, no_progress, **sizes)


def check(found: ActivationIndex, slow: list[list[Token]], num_features: int = D_SAE) -> None:
    tokens = [token for sequence in slow for token in sequence]
    assert found.ids.tolist() == [token.id for token in tokens]
    assert found.counts.tolist() == [token.counts for token in tokens]
    assert found.sequence_of(np.arange(len(tokens))).tolist() == [token.sequence for token in tokens]
    for index in range(num_features):
        active = {place: token.acts[index] for place, token in enumerate(tokens) if token.acts[index] > 0}
        assert found[index].token.tolist() == list(active)
        assert found[index].value.tolist() == pytest.approx(list(active.values()), rel=1e-4)
    assert found.num_active.tolist() == [len(found[index].token) for index in range(num_features)]


def test_sinks_are_left_out(data: Path, tmp_path: Path) -> None:
    found = record(tmp_path, sae(), reader(), data, limit=5.0)
    assert 0.2 < found.counts.mean() < 0.8
    check(found, tokens_of(reader(), sae(), data / "b.jsonl", 5.0))


@pytest.mark.parametrize("most", [1, 17, 40, 333])
def test_no_more_tokens_are_read_than_asked_for(data: Path, tmp_path: Path, most: int) -> None:
    everything = [token for sequence in tokens_of(reader(), sae(), data / "b.jsonl") for token in sequence]
    check(record(tmp_path, sae(), reader(), data, tokens=most), [everything[:most]])


def test_small_portions_are_sorted_like_one(data: Path, tmp_path: Path) -> None:
    found = record(tmp_path, sae(), reader(), data, sorted_at_once=97, encoded_at_once=7 * D_SAE)
    check(found, tokens_of(reader(), sae(), data / "b.jsonl"))


def test_an_sae_of_several_places_reads_them_side_by_side(data: Path, tmp_path: Path) -> None:
    of = sae(Site("resid_post", 0), SITE, kind="crosscoder")
    reading = replace(reader(), sites=of.reads)
    check(record(tmp_path, of, reading, data), tokens_of(reading, of, data / "b.jsonl"))


def test_of_a_topk_only_the_k_largest_count_and_negative_ones_never(data: Path, tmp_path: Path) -> None:
    signed = replace(sae(), top_k=TopK(3, signed=True))
    found = record(tmp_path, signed, reader(), data)
    check(found, tokens_of(reader(), signed, data / "b.jsonl"))
    assert found.num_active.sum() < 3 * found.num_tokens


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ({"sites": (Site("resid_post", 0), SITE)}, "reads vectors of width 16, and resid_post 0, resid_post 1 of this"),
        ({"sites": (Site("resid_post", 7),)}, "There is no layer 7"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(data: Path, tmp_path: Path, of: dict[str, Any], said: str) -> None:
    with pytest.raises(SAEError, match=said):
        run_labelling(settings(tmp_path / "labels.parquet", data), sae(), replace(reader(), **of))
    assert list(tmp_path.iterdir()) == []


def test_a_text_of_which_nothing_counts_is_refused_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="Of the first 1 tokens of the data none counts"):
        run_labelling(settings(tmp_path / "labels.parquet", data, tokens=1), sae(), reader())
    assert list(tmp_path.iterdir()) == []


def test_a_text_without_a_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("too short")
    with pytest.raises(SAEError, match="no document of 16 tokens or more"):
        run_labelling(settings(tmp_path / "labels.parquet", tmp_path / "a.txt"), sae(), reader())
