"""Looking for features, by words and by meaning, over a small table of labels and with the real sentence encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.blank_label import blank_label
from tests.support.bundled import ENTRY, GOLDEN_GATE
from tests.support.messages import kept_messages
from tests.support.sae_entries import entry

from saeclamp.types import FeatureQuery
from saeclamp_saes.labelling.label_file import LabelFile
from saeclamp_saes.labelling.table import LabelsInfo, LabelTable, TokenLogit, labels_path
from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_server import sentence_encoder
from saeclamp_server.api.features import FeatureSearch
from saeclamp_server.api.features.description import description
from saeclamp_server.api.features.embedding_index import EmbeddingIndex
from saeclamp_server.api.features.full_text_index import SAID, TOKENS, FullTextIndex, Match
from saeclamp_server.api.features.sae_info import feature_info
from saeclamp_server.api.features.search_documents import FeatureDocument, SearchDocuments
from saeclamp_server.sentence_encoder import SentenceEncoder
from saeclamp_server.served_sae import ServedSAE
from saeclamp_server.site_norms import SiteNorms

INFO = LabelsInfo("small", "0" * 64, "tiny", {}, {}, 1000, {}, (), {}, "2026-01-01")
LABELS: list[dict[str, Any]] = [
    {"input_label": 'token " ship", " Ship"', "density": 0.002, "output_score": 0.3, "max_act": 5.0},
    {"input_label": 'token " soup", " stew"', "density": 0.02, "output_score": 0.001},
    {"explanation": "Suspension bridges and their towers.", "explanation_source": "someone", "density": 0.001},
    {"kind": "say", "label": 'say " the"', "label_score": 0.7, "say_label": 'say " the"', "density": 0.4},
    {"input_label": 'token "\\n\\n"'},
    {"top_logits": (TokenLogit(" vessels", 7, 2.0), TokenLogit(" harbour", 8, 1.0)), "density": 0.003},
    {},
    {"input_label": 'token " été", " hiver"', "density": 0.001},
]
NOTES = (FeatureNote(5, "sea", 7.0, (0.5, 1.0), 0.8, "The sea and sailing."), FeatureNote(6, "odd-one", None))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SAECLAMP_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> FeatureSearch:
    path = tmp_path_factory.mktemp("labels") / "labels.parquet"
    rows = [blank_label(index=index, num_active=9, top_act=9.0, **label) for index, label in enumerate(LABELS)]
    LabelTable.of(INFO, rows).write(path)
    norms = SiteNorms(10.0, [1.0] * len(LABELS))
    small = ServedSAE(entry("small", 3, len(LABELS), *NOTES), norms, labels=LabelFile(path))
    bare = ServedSAE(entry("bare", 3, 4, FeatureNote(2, "ships-at-war", 3.0, (1, 2), 1.5, "Naval battles.")), norms)
    made = FeatureSearch({"small": small, "bare": bare})
    with kept_messages() as said:
        made.prepare()
    assert said == []
    return made


def found(search: FeatureSearch, query: str, **options: Any) -> list[str]:
    return [hit.feature for hit in search.find(FeatureQuery(query=query, **options)).data]


def test_words_of_names_labels_and_tokens_are_found(search: FeatureSearch) -> None:
    assert found(search, "bridge")[0] == "small/2"
    assert found(search, "sea")[0] == "small/5"
    assert "small/5" in found(search, "vessels")
    assert "small/0" in found(search, "ships")  # the same stem
    assert found(search, "odd-one")[0] == "small/6"
    assert found(search, "ete")[0] == "small/7"  # without accents


def test_meaning_finds_what_no_word_says(search: FeatureSearch) -> None:
    answer = search.find(FeatureQuery(query="ocean voyage"))
    assert answer.rankings == ("words", "tokens", "meaning")
    assert answer.note is not None
    assert "nearest in meaning" in answer.note
    assert answer.data[0].feature in ("small/5", "bare/2", "small/0")
    assert answer.data[0].similarity is not None
    assert answer.data[0].similarity > 0.3
    assert found(search, "cooking a meal")[0] == "small/1"


def test_a_hit_shows_what_helps_to_choose(search: FeatureSearch) -> None:
    answer = search.find(FeatureQuery(query="sailing"))
    assert answer.note is None
    (sea,) = (hit for hit in answer.data if hit.feature == "small/5")
    assert (sea.name, sea.green_zone, sea.best, sea.density) == ("sea", (0.5, 1.0), 0.8, 0.003)
    assert sea.label is not None
    assert (sea.label.text, sea.label.source) == ("The sea and sailing.", "feature book")
    assert sea.promotes == (" vessels", " harbour")
    (ship,) = (hit for hit in search.find(FeatureQuery(query="ship")).data if hit.feature == "small/0")
    assert (ship.tokens, ship.max_act) == ((" ship", " Ship"), 5.0)
    assert ship.output_score == pytest.approx(0.3)
    (say,) = (hit for hit in search.find(FeatureQuery(min_density=0.3)).data)
    assert say.label is not None
    assert (say.label.text, say.label.source) == ('say " the"', "say")


def test_a_feature_is_described_by_its_label_or_else_by_its_tokens(search: FeatureSearch) -> None:
    described = {hit.feature: hit.description for hit in search.find(FeatureQuery(limit=20)).data}
    assert described == {
        "small/0": 'active on " ship", " Ship"',
        "small/1": 'active on " soup", " stew"',
        "small/2": "Suspension bridges and their towers.",
        "small/3": 'say " the"',
        "small/4": 'active on "\\n\\n"',
        "small/5": "The sea and sailing.",
        "small/6": None,
        "small/7": 'active on " été", " hiver"',
        "bare/0": None,
        "bare/1": None,
        "bare/2": "Naval battles.",
        "bare/3": None,
    }
    assert search.description("small", 4) == described["small/4"]
    assert description(None, (), (" vessels", " harbour")) == 'promotes " vessels", " harbour"'


def test_no_bundled_feature_is_without_a_description_and_all_places_give_the_same(cache: Path) -> None:
    norms = SiteNorms(10.0, [1.0] * ENTRY.summary.d_sae)
    served = ServedSAE(ENTRY, norms, labels=LabelFile(labels_path(ENTRY.path)))
    findable = SearchDocuments.build(served)
    descriptions = [findable.description(index) for index in range(len(findable))]
    assert all(descriptions)
    assert sum(findable.label(index) is None for index in range(len(findable))) > 2000
    for index in (GOLDEN_GATE, 0, 1, 5, 508):
        shown = feature_info(served, index, lambda sae, other: descriptions[other])
        assert shown.description == descriptions[index]
        assert [one.description for one in shown.neighbours or ()] == [
            descriptions[int(one.feature.rpartition("/")[2])] for one in shown.neighbours or ()
        ]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [*(f"small/{index}" for index in range(8)), "bare/0", "bare/1", "bare/2", "bare/3"]),
        ({"sae": ["bare"]}, ["bare/0", "bare/1", "bare/2", "bare/3"]),
        ({"green_zone": True}, ["small/5", "bare/2"]),
        ({"min_output_score": 0.1}, ["small/0"]),
        ({"max_density": 0.0015}, ["small/2", "small/7"]),
        ({"min_density": 0.002, "max_density": 0.003}, ["small/0", "small/5"]),
        ({"limit": 2, "offset": 3}, ["small/3", "small/4"]),
    ],
)
def test_without_a_query_features_are_listed(search: FeatureSearch, filters: Any, expected: list[str]) -> None:
    assert found(search, "", **{"limit": 100, **filters}) == expected


def test_filters_hold_for_a_query_too(search: FeatureSearch) -> None:
    assert set(found(search, "ships and the sea", green_zone=True)) == {"small/5", "bare/2"}
    assert found(search, "ships", sae=["bare"]) == ["bare/2"]


def test_pages_follow_each_other(search: FeatureSearch) -> None:
    whole = search.find(FeatureQuery(query="ship sea harbour", limit=100))
    pages = [found(search, "ship sea harbour", limit=1, offset=number) for number in range(whole.num_found)]
    assert [feature for page in pages for feature in page] == [hit.feature for hit in whole.data]
    scores = [hit.score or 0 for hit in whole.data]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    "query", ['"', "AND", "ship OR", "name:ship", "ship*", "NEAR(a b)", "(", "-ship", "'); DROP", "\0"]
)
def test_no_query_is_an_operator_or_an_error(search: FeatureSearch, query: str) -> None:
    search.find(FeatureQuery(query=query))


def test_nothing_similar_is_nothing_found(search: FeatureSearch) -> None:
    assert found(search, "xqzw") == []


def test_embeddings_are_kept_and_made_again_where_the_file_is_damaged(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences = ["a ship on the sea", "", "soup"]
    encoder = sentence_encoder.SentenceEncoder()
    first = EmbeddingIndex.build(sentences, encoder).cosines("boat", range(3))
    assert first[1] == 0
    assert first[0] > first[2]
    (path,) = sorted((cache / "embeddings").glob("*.npy"), key=lambda file: file.stat().st_mtime)[-1:]
    with monkeypatch.context() as patch:
        patch.setattr(
            encoder,
            "encode",
            lambda texts, real=encoder.encode: real(texts) if len(texts) == 1 else pytest.fail("embedded anew"),
        )
        again = EmbeddingIndex.build(sentences, encoder).cosines("boat", range(3))
    assert again == pytest.approx(first, abs=2e-3)  # half precision
    path.write_bytes(path.read_bytes()[:100])
    assert EmbeddingIndex.build(sentences, encoder).cosines("boat", range(3)) == pytest.approx(first, abs=2e-3)


def test_of_servers_that_start_together_one_embeds_for_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [f"ship {number} on the sea" for number in range(20)]
    encoders = [sentence_encoder.SentenceEncoder() for _ in range(4)]
    asked: list[int] = []
    embed = sentence_encoder.SentenceEncoder.encode

    def counted(self: SentenceEncoder, texts: Sequence[str]) -> Any:
        asked.append(len(texts))
        return embed(self, texts)

    monkeypatch.setattr(SentenceEncoder, "encode", counted)
    with ThreadPoolExecutor(4) as pool:
        built = [*pool.map(EmbeddingIndex.build, [sentences] * 4, encoders)]
    assert asked == [20]
    cosines = [index.cosines("boat", range(20)) for index in built]
    assert all(one == pytest.approx(cosines[0], abs=2e-3) for one in cosines)


def test_without_the_encoder_words_decide_and_that_is_said(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setattr(sentence_encoder, "WEIGHTS_SHA256", "0" * 64)
    bare = ServedSAE(entry("bare", 3, 4, FeatureNote(2, "ships", 3.0)), SiteNorms(10.0, [1.0] * 4))
    search = FeatureSearch({"bare": bare})
    search.prepare()
    assert said == []
    answer = search.find(FeatureQuery(query="ship"))
    assert ([hit.feature for hit in answer.data], answer.rankings) == (["bare/2"], ("words", "tokens"))
    assert answer.note is not None
    assert "pip install" in answer.note


def test_an_index_that_cannot_be_made_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    def fail(sentences: Sequence[str], encoder: SentenceEncoder) -> EmbeddingIndex:
        raise OSError("the disk is gone")

    monkeypatch.setattr(EmbeddingIndex, "build", fail)
    bare = ServedSAE(entry("bare", 3, 4, FeatureNote(2, "ships", 3.0)), SiteNorms(10.0, [1.0] * 4))
    search = FeatureSearch({"bare": bare})
    search.prepare()
    answer = search.find(FeatureQuery(query="ship"))
    assert (answer.rankings, answer.note) == (
        ("words", "tokens"),
        "This is a search by words: features could not be embedded.",
    )
    assert "the disk is gone" in said[0]


def test_damaged_labels_leave_the_book(tmp_path: Path, cache: Path, said: list[str]) -> None:
    path = tmp_path / "labels.parquet"
    rows = [blank_label(index=index, num_active=9, top_act=9.0, **label) for index, label in enumerate(LABELS)]
    LabelTable.of(INFO, rows).write(path)
    opened = LabelFile(path)
    path.write_bytes(path.read_bytes()[:200] + b"\0" * 400)
    small = ServedSAE(entry("small", 3, len(LABELS), *NOTES), SiteNorms(10.0, [1.0] * 8), labels=opened)
    search = FeatureSearch({"small": small})
    search.prepare()
    assert found(search, "sea")[0] == "small/5"
    assert "feature book alone" in said[0]


def test_what_people_say_and_tokens_are_ranked_apart_and_common_words_do_not_count() -> None:
    index = FullTextIndex(
        [
            FeatureDocument("", "", "bridge the"),
            FeatureDocument("bridge", "", "the"),
            FeatureDocument("", "The old one.", ""),
        ]
    )

    def numbers(query: str, columns: str) -> list[int]:
        return [match.number for match in index.search(query, columns)]

    assert numbers("the bridge", "{name said}") == [1]
    assert numbers("the bridge", "{tokens}") == [0]
    assert numbers("the", "{name said}") == [2]
    assert {*numbers("the", "{tokens}")} == {0, 1}


def test_a_match_tells_which_share_of_the_words_it_holds_in_any_form() -> None:
    index = FullTextIndex([FeatureDocument("", "", "climates changing"), FeatureDocument("", "", "change")])
    assert index.search("climate change of", "{tokens}") == [Match(0, 1.0), Match(1, 0.5)]


@pytest.mark.usefixtures("cache")
def test_whoever_asks_before_labels_are_read_waits_in_no_thread_even_where_there_is_no_sae(said: list[str]) -> None:
    async def waited() -> bool:
        waiting = asyncio.create_task(early.until_ready())
        await asyncio.sleep(0.1)
        is_waiting = not waiting.done()
        await asyncio.to_thread(early.prepare)
        await asyncio.wait_for(waiting, 5)
        return is_waiting

    early = FeatureSearch({})
    assert asyncio.run(waited())
    assert said == []
    assert early.find(FeatureQuery(query="sea")).data == ()


def test_who_asks_for_two_words_does_not_mean_one_of_them(tmp_path: Path, cache: Path) -> None:
    tokens = {0: " change, changed, changing", 1: " warming, emissions", 2: " climate, warming"}
    rows = [
        blank_label(
            index=index,
            num_active=9,
            top_act=9.0,
            input_label="token " + ", ".join(f'"{one}"' for one in tokens[index].split(", ")),
            explanation={1: "Global warming and the climate.", 2: "Climate change."}.get(index),
        )
        for index in range(3)
    ]
    LabelTable.of(INFO, rows).write(tmp_path / "labels.parquet")
    sae = ServedSAE(entry("small", 3, 3), SiteNorms(10.0, [1.0] * 3), labels=LabelFile(tmp_path / "labels.parquet"))
    search = FeatureSearch({"small": sae})
    search.prepare()
    assert found(search, "climate change") == ["small/2", "small/1", "small/0"]


@given(st.text(max_size=40))
@example("unicode_escape")
@example("snake_case and __dunder__")
@example("a\U0001e900b \u1c80\u0301x")  # letters that SQLite's Unicode does not have yet
def test_any_query_is_answered(query: str) -> None:
    index = FullTextIndex([FeatureDocument("a", "unicode and escape sequences", "b")])
    for columns in (SAID, TOKENS):
        index.search(query, columns)


def test_words_that_are_joined_by_underscores_are_words() -> None:
    index = FullTextIndex([FeatureDocument("a", "escape sequences", ""), FeatureDocument("b", "Unicode", "")])
    assert {found.number for found in index.search("unicode_escape", SAID)} == {0, 1}
