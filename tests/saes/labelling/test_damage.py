"""Work on labels that is half done goes on with the same text alone, and says what of it is missing or damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.support.tiny_labels import StopAfter, Stopped, sae, settings
from tests.support.tiny_training import corpus, reader, texts

from saeclamp_saes.errors import LabelError
from saeclamp_saes.labelling.run import SIZES, BatchSizes, LabelSettings, run_labelling
from saeclamp_saes.labelling.table import LabelTable
from saeclamp_saes.lm.harvest import ActivationReader

NUM_TOLD = {"reading documents": 12}
"""Of a step's reports, until something of it was kept."""
TO_BEGIN_ANEW = r"To begin anew, delete the folder .*labels\.parquet\.work\."


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return corpus(tmp_path / "data", 24)


def in_small_groups() -> ActivationReader:
    return reader(batch_tokens=50, group_tokens=200)


def of(out: Path, *files: Path, **options: Any) -> LabelSettings:
    return replace(settings(out, files[0], **options), data=files)


def stopped(out: Path, data: Path, step: str = "reading documents", sizes: BatchSizes = SIZES) -> Path:
    """Label until a step has begun; returns the folder of what was half done."""
    report = StopAfter(NUM_TOLD.get(step, 2), step)
    with pytest.raises(Stopped):
        run_labelling(settings(out, data), sae(), in_small_groups(), report, sizes)
    return out.with_name(f"{out.name}.work")


def test_labels_do_not_go_on_with_their_text_in_another_order(tmp_path: Path) -> None:
    out, files = tmp_path / "labels.parquet", [tmp_path / "a.jsonl", tmp_path / "secret.jsonl"]
    for seed, file in enumerate(files):
        file.write_text("\n".join(json.dumps({"text": text}) for text in texts(20, seed=seed)))
    quote = {"quote": (files[0],)}
    with pytest.raises(Stopped):
        run_labelling(of(out, files[1], files[0], **quote), sae(), in_small_groups(), StopAfter(2, "reading documents"))
    said = r"another order of the data \(secret\.jsonl, a\.jsonl, and now a\.jsonl, secret\.jsonl\)"
    with pytest.raises(LabelError, match=said):
        run_labelling(of(out, *files, **quote), sae(), in_small_groups())


@pytest.mark.parametrize("name", ["ids", "token", "lengths"])
def test_what_was_read_before_and_cut_short_is_not_gone_on_with(tmp_path: Path, data: Path, name: str) -> None:
    work = stopped(tmp_path / "labels.parquet", data)
    path = work / "firings" / name
    path.write_bytes(path.read_bytes()[:7])
    for _ in range(2):  # nothing is made longer by trying
        with pytest.raises(
            LabelError, match=rf"{name} was cut short: it has 7 bytes, and [\d,]+ were .*{TO_BEGIN_ANEW}"
        ):
            run_labelling(settings(tmp_path / "labels.parquet", data), sae(), in_small_groups())
    path.unlink()
    with pytest.raises(LabelError, match=f"{name} was cut short: it has 0 bytes"):
        run_labelling(settings(tmp_path / "labels.parquet", data), sae(), in_small_groups())


@pytest.mark.parametrize("name", ["token-by-feature", "value-by-feature"])
def test_what_was_sorted_and_cut_short_is_not_gone_on_with(tmp_path: Path, data: Path, name: str) -> None:
    work = stopped(tmp_path / "labels.parquet", data, "logit lens and output scores", BatchSizes(logits=7 * 97))
    path = work / "firings" / name
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(LabelError, match=rf"{name} was cut short: it has 400 bytes, .*{TO_BEGIN_ANEW}"):
        run_labelling(settings(tmp_path / "labels.parquet", data), sae(), in_small_groups())


@pytest.mark.parametrize("step", ["firings", "neighbours"])
def test_a_damaged_state_is_named(tmp_path: Path, data: Path, step: str) -> None:
    sizes = BatchSizes(cosines=5 * 24)
    path = stopped(tmp_path / "labels.parquet", data, "neighbours", sizes) / step / "state.json"
    # all of it is there, but for what the state is to say
    other = json.dumps({**json.loads(path.read_text()), "state": {"sorted": 1, "done": "x"}})
    for content in ("", "{", "[]", '{"bytes": {}, "state": {}}', '{"bytes": 1, "state": {}}', '{"state": {}}', other):
        path.write_text(content)
        with pytest.raises(LabelError, match=rf"{step}/state\.json is damaged\. {TO_BEGIN_ANEW}"):
            run_labelling(settings(tmp_path / "labels.parquet", data), sae(), in_small_groups())


def test_metadata_that_do_not_say_what_labels_are_of_are_a_sentence(tmp_path: Path, data: Path) -> None:
    path, key = tmp_path / "labels.parquet", b"saeclamp_labels"
    run_labelling(settings(path, data, tokens=300), sae(), reader())
    table = pq.read_table(path)
    whole = json.loads(table.schema.metadata[key])
    changes = ({"date": None}, {"warnings": None}, {"num_tokens": "many"}, {"settings": []}, {"more": 1})
    changed = [json.dumps({**whole, "info": {**whole["info"], **one}}).encode() for one in changes]
    infos = [f'{{"version": 2, "info": {info}}}'.encode() for info in ("null", "[]", '{"sae": "x"}')]
    for noted in [b"", b"{", b"\xff", b"[]", b'{"version": 2}', *infos, *changed]:
        pq.write_table(table.replace_schema_metadata({key: noted}), path)
        with pytest.raises(LabelError, match=r"labels\.parquet holds no labels that this version of saeclamp knows"):
            LabelTable.read(path)


def test_labels_of_one_text_that_is_named_twice_are_those_of_the_text(tmp_path: Path, data: Path) -> None:
    file, out = data / "b.jsonl", tmp_path / "labels.parquet"
    once = run_labelling(of(out, file), sae(), reader())
    other = tmp_path / "data" / ".." / "data" / "b.jsonl"
    twice = run_labelling(of(out, file, other, quote=(other,)), sae(), reader())
    assert twice.table.equals(once.table)
    assert replace(twice.info, date="", settings={}) == replace(once.info, date="", settings={})
