"""Explanations by a real endpoint: scored rightly, each kept at once, and the same in any order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.explain_endpoint import DEAD, WORDS, Failure, Rules, endpoint, examples, inactive, labels, said

from saeclamp_saes.errors import LabelError
from saeclamp_saes.labelling.explain.client import ExplainEndpoint
from saeclamp_saes.labelling.explain.examples import text_of
from saeclamp_saes.labelling.explain.journal import Explained, Journal
from saeclamp_saes.labelling.explain.run import ExplainRequest, ExplainResult, explain
from saeclamp_saes.labelling.table import Explanation, LabelTable


def run(path: Path, url: str, **options: Any) -> ExplainResult:
    asked = {name: options.pop(name) for name in ("retries", "timeout", "first_wait", "api_key") if name in options}
    return explain(ExplainRequest(path, ExplainEndpoint(url, "stub", **{"first_wait": 0.01, **asked}), **options))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    labels().write(tmp_path / "labels.parquet")
    return tmp_path / "labels.parquet"


def journal(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path.parent / "labels.parquet.explained.jsonl").read_text().splitlines()]


def test_every_feature_is_explained_and_scored_on_what_was_not_shown(path: Path) -> None:
    rules = Rules()
    with endpoint(rules) as url:
        outcome = run(path, url, concurrency=3)
    got = LabelTable.read(path)
    scores = {}
    for index, word in enumerate(WORDS):
        own = {text_of(example): example for example in examples(word, index)}
        without = {text_of(piece) for piece in inactive(index)}
        shown = {text.replace("<<", "").replace(">>", "") for text in rules.shown(word)}
        requests = rules.detected(word)
        asked = [text for texts in requests for text in texts]
        held_out = [text for text in asked if text in own]
        others = [text for text in asked if text not in own]
        assert len(asked) == len(set(asked))
        assert not shown & set(asked)
        assert len(held_out) == len(others) == 14
        assert set(others) == without
        assert {own[text].quantile for text in held_out} == set(range(10))
        assert all(len(texts) <= 10 for texts in requests)
        assert [text in own for text in asked] != sorted([text in own for text in asked], reverse=True)
        right = sum(f" {word}" in text for text in held_out)
        wrong = sum(f" {word}" in text for text in others)
        scores[index] = (right / 14 + (14 - wrong) / 14) / 2
        explanation = got.explanations()[index]
        assert (explanation.text, explanation.source) == (said(word), "llm:stub")
        assert explanation.score == pytest.approx(scores[index])
        (line,) = [line for line in journal(path) if line["index"] == index]
        assert (line["activating"], line["activating_found"]) == (14, right)
        assert (line["others"], line["others_found"]) == (14, wrong)
    assert 0.5 < scores[WORDS.index("cat")] < 1.0 == scores[WORDS.index("bridge")]
    assert 0.5 < scores[WORDS.index("law")] < 1.0
    assert DEAD not in got.explanations()
    assert outcome.explained == len(WORDS)
    assert outcome.mean_score == pytest.approx(sum(scores.values()) / len(scores))
    # one request to explain a feature, and three to detect 28 texts, ten at a time
    assert asdict(outcome.usage) == {
        "requests": 4 * len(WORDS),
        "prompt_tokens": 400 * len(WORDS),
        "completion_tokens": 28 * len(WORDS),
        "uncounted": 0,
    }


def test_strong_and_middling_examples_are_shown_marked(path: Path) -> None:
    rules = Rules()
    with endpoint(rules) as url:
        run(path, url, features=[0])
    asked = rules.asked()[0]
    assert asked["marks"] == ["<<", ">>"]
    assert asked["strong_examples"][0] == " It says 0x0 owl and<< bridge>> today."
    quantiles = [example.quantile for example in examples("bridge", 0)]
    for texts, wanted in ((asked["strong_examples"], [9] * 5), (asked["weaker_examples"], [8, 7, 6, 5, 4])):
        assert [quantiles[int(text.split("0x")[1].split()[0])] for text in texts] == wanted


def test_every_request_names_the_model_and_carries_the_wanted_body(path: Path) -> None:
    rules = Rules()
    with endpoint(rules) as url:
        body = {"max_tokens": None, "max_completion_tokens": 99, "temperature": 0.5}
        explain(ExplainRequest(path, ExplainEndpoint(f"{url}/", "stub", body=body), features=[0]))
    for request in rules.seen:
        rest = {name: value for name, value in request.items() if name != "messages"}
        assert rest == {"model": "stub", "max_completion_tokens": 99, "temperature": 0.5}


def by_index(path: Path) -> dict[int, dict[str, Any]]:
    return {line["index"]: line for line in journal(path)}


def test_order_and_concurrency_change_nothing(tmp_path: Path) -> None:
    found = []
    for number, options in enumerate(
        [{"concurrency": 1}, {"concurrency": 8}, {"features": list(reversed(range(len(WORDS)))), "concurrency": 2}]
    ):
        path = tmp_path / str(number) / "labels.parquet"
        path.parent.mkdir()
        labels().write(path)
        with endpoint(Rules(delay=0.005)) as url:
            run(path, url, **options)
        found.append((LabelTable.read(path).explanations(), by_index(path)))
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == len(WORDS)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_features_are_asked_about_at_once_than_wanted(path: Path, concurrency: int) -> None:
    rules = Rules(delay=0.03)
    with endpoint(rules) as url:
        run(path, url, concurrency=concurrency)
    assert rules.most_at_once == concurrency


def test_the_best_by_output_score_come_first(path: Path) -> None:
    with endpoint(Rules()) as url:
        run(path, url, most=3, concurrency=1)
    assert [line["index"] for line in journal(path)] == [7, 6, 5]


def test_a_killed_run_goes_on_and_loses_only_what_was_in_flight(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole" / "labels.parquet", tmp_path / "killed" / "labels.parquet"
    for path in (whole, killed):
        path.parent.mkdir()
        labels().write(path)
    with endpoint(Rules()) as url:
        run(whole, url)
    rules = Rules(delay=0.1)
    lines = killed.parent / "labels.parquet.explained.jsonl"
    with endpoint(rules) as url:
        code = (
            "import argparse, sys; from saeclamp_saes.cli import labels\n"
            "parser = argparse.ArgumentParser(); labels.register(parser.add_subparsers())\n"
            "args = parser.parse_args(sys.argv[1:]); sys.exit(args.run(args))"
        )
        argv = ["labels", "explain", str(killed), "--base-url", url, "--model", "stub", "--concurrency", "2"]
        process = subprocess.Popen([sys.executable, "-c", code, *argv], env=os.environ)
        deadline = time.monotonic() + 120
        while not (lines.exists() and lines.read_bytes().count(b"\n") >= 3):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = set(by_index(killed))
        assert 3 <= len(kept) < len(WORDS)
        lines.open("a").write('{"run": "half a li')  # as if it had been killed while it wrote
        rules.seen.clear()
        outcome = run(killed, url)
    assert (outcome.before, outcome.explained) == (len(kept), len(WORDS) - len(kept))
    for index, word in enumerate(WORDS):
        assert bool(rules.shown(word)) is (index not in kept)
    assert LabelTable.read(killed).explanations() == LabelTable.read(whole).explanations()
    assert by_index(killed) == by_index(whole)


def test_a_finished_run_asks_nothing_again(path: Path) -> None:
    rules = Rules()
    with endpoint(rules) as url:
        first = run(path, url)
        before = path.stat().st_mtime_ns
        rules.seen.clear()
        second = run(path, url)
    assert rules.seen == []
    assert (second.before, second.explained, second.mean_score) == (first.explained, 0, first.mean_score)
    assert path.stat().st_mtime_ns == before


def test_explanations_from_elsewhere_stay_unless_they_are_replaced(tmp_path: Path) -> None:
    path, imported = tmp_path / "labels.parquet", Explanation("crossings", "neuronpedia:x/y", 0.5)
    labels(bridge=imported).write(path)
    with endpoint(Rules()) as url:
        assert run(path, url).kept == 1
        assert LabelTable.read(path).explanations()[0] == imported
        replaced = run(path, url, replace=True)
        assert (replaced.kept, replaced.explained, replaced.before) == (0, 1, len(WORDS) - 1)
        assert LabelTable.read(path).explanations()[0].text == said("bridge")
        # another import later is not undone by a run that goes on
        LabelTable.read(path).with_explanations({0: imported}).write(path)
        assert run(path, url).kept == 1
        assert LabelTable.read(path).explanations()[0] == imported


def test_what_makes_another_explanation_is_another_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = Rules()
    with endpoint(rules) as url:
        run(path, url, features=[0])
        warmer = ExplainRequest(path, ExplainEndpoint(url, "stub", body={"temperature": 1.0}), features=[0])
        assert explain(warmer).kept == 1
        assert explain(replace(warmer, replace=True)).explained == 1
        remade = LabelTable.read(path)
        replace(remade, info=replace(remade.info, date="2027-01-01T00:00:00+00:00")).write(path)
        assert run(path, url, features=[0]).kept == 1
        assert run(path, url, features=[0], replace=True).explained == 1
        monkeypatch.setattr("saeclamp_saes.labelling.explain.run.CHOICE", 3)
        assert run(path, url, features=[0], replace=True).explained == 1
    assert len(rules.shown("bridge")) == 4 * 10
    assert len({line["run"] for line in journal(path)}) == 4


def test_features_with_too_few_examples_are_left_out(path: Path) -> None:
    rare = labels()
    features = list(rare)
    features[2] = replace(features[2], examples=features[2].examples[:3])
    features[3] = replace(features[3], inactive=features[3].inactive[:1])
    features[4] = replace(features[4], inactive=features[4].inactive[:2])
    LabelTable.of(rare.info, features).write(path)
    with endpoint(Rules()) as url:
        outcome = run(path, url, features=[1, 2, 3, 4, DEAD], concurrency=1)
    assert (outcome.explained, outcome.too_few_examples) == (2, [2, 3, DEAD])
    # two pieces without the feature weigh as much as fourteen with it
    assert by_index(path)[4]["others"] == 2
    assert by_index(path)[4]["score"] == 1.0


def test_a_feature_that_fails_does_not_stop_the_others_and_is_tried_again(path: Path) -> None:
    rules = Rules(never={"<< bridge>>": Failure(content="I would rather not."), "<< law>>": Failure(500)})
    with endpoint(rules) as url:
        outcome = run(path, url, retries=1, concurrency=1)
        assert set(outcome.failed) == {0, 2}
        assert "does not answer as asked, but with 'I would rather not.'" in outcome.failed[0]
        assert "status 500" in outcome.failed[2]
        assert set(LabelTable.read(path).explanations()) == set(range(len(WORDS))) - {0, 2}
        rules.never.clear()
        again = run(path, url)
    assert (again.before, again.explained, again.failed) == (len(WORDS) - 2, 2, {})


def test_when_nothing_is_answered_it_ends_and_keeps_what_it_has(tmp_path: Path) -> None:
    path, few = tmp_path / "labels.parquet", labels()
    features = [replace(few[index % len(WORDS)], index=index) for index in range(40)]
    LabelTable.of(few.info, features).write(path)
    rules = Rules()
    with endpoint(rules) as url:
        run(path, url, features=[39])
        rules.never["<<"] = Failure(503)
        with pytest.raises(LabelError, match=r"10 features in a row were not explained: .*status 503"):
            run(path, url, retries=0, concurrency=4)
    assert set(LabelTable.read(path).explanations()) == {39}
    assert len(rules.seen) < 20


@pytest.mark.parametrize(
    ("rules", "options", "sentence"),
    [
        pytest.param(Rules(key="right"), {"api_key": "wrong"}, "the key is wrong or missing: status 401", id="key"),
        pytest.param(Rules(failures=[Failure(404)] * 9), {}, "there is no such model or address", id="no-such-model"),
        pytest.param(Rules(), {"features": [3, 99]}, "There is no feature 99", id="no-such-feature"),
    ],
)
def test_what_cannot_work_ends_at_once(path: Path, rules: Rules, options: dict[str, Any], sentence: str) -> None:
    with endpoint(rules) as url, pytest.raises(LabelError, match=sentence) as refused:
        run(path, url, concurrency=2, **options)
    assert len(rules.seen) <= 2
    assert "wrong" not in str(refused.value).replace("the key is wrong", "").replace("wrong key", "")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nowhere", "is no address"),
        ("ftp://127.0.0.1/v1", "is no address"),
        ("http://127.0.0.1:9/v1", "cannot be reached"),
    ],
)
def test_an_address_that_is_none_is_a_sentence_at_once(path: Path, url: str, sentence: str) -> None:
    with pytest.raises(LabelError, match=sentence):
        run(path, url, first_wait=1000.0)


def test_a_second_process_is_refused(path: Path) -> None:
    with Journal.open(path, "some run"), endpoint(Rules()) as url, pytest.raises(LabelError, match="Another process"):
        run(path, url)


def test_a_journal_with_other_lines_is_named(path: Path) -> None:
    (path.parent / "labels.parquet.explained.jsonl").write_text("[1]\n")
    with endpoint(Rules()) as url, pytest.raises(LabelError, match=r"explained\.jsonl, line 1 is no explanation"):
        run(path, url)


def test_the_journal_gives_back_what_it_kept(path: Path) -> None:
    kept = Explained(3, "a “quoted”\u2028 line", "llm:x", 0.75, 4, 3, 4, 1, 6)
    with Journal.open(path, "one") as first:
        first.keep(kept)
    with Journal.open(path, "two") as other:
        assert other.finished == {}
    with Journal.open(path, "one") as again:
        assert again.finished == {3: kept}


def test_lines_with_fields_that_are_no_longer_written_are_read(path: Path) -> None:
    kept = Explained(3, "cats", "llm:x", 0.75, 4, 3, 4, 1, 6)
    line = {"run": "one", **asdict(kept), "chance_active": 0.35}
    (path.parent / "labels.parquet.explained.jsonl").write_text(json.dumps(line) + "\n")
    for run_of_it, expected in (("one", {3: kept}), ("another", {})):
        with Journal.open(path, run_of_it) as lines:
            assert lines.finished == expected
