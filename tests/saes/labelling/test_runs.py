"""Labelling that is stopped anywhere comes to the same; what is in the way is refused; the command says what was found."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.saes.loaders.layouts import saelens
from tests.support.tiny_labels import D_SAE, StopAfter, Stopped, replace_point, sae, settings
from tests.support.tiny_models import make
from tests.support.tiny_training import corpus, reader, tokenizer

from saeclamp_saes import SAE, read_sae
from saeclamp_saes.cli import label as command
from saeclamp_saes.errors import LabelError, SAEError
from saeclamp_saes.io.hashes import sha256_of
from saeclamp_saes.labelling.column_store import ColumnStore
from saeclamp_saes.labelling.run import BatchSizes, run_labelling, token_strings
from saeclamp_saes.labelling.table import Explanation, LabelTable, decoder_sha256, read_labels

SMALL_STEPS = BatchSizes(sorted=4000, logits=7 * 97, rows=9, cosines=5 * D_SAE)
"""So many steps that a tiny run can be stopped in the middle of each part."""
CATS = Explanation("cats", "a-model", 0.75)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def parts_of(told: StopAfter) -> list[str]:
    return list(dict.fromkeys(told.doing))


def test_a_stopped_run_goes_on_and_comes_to_the_same(tmp_path: Path) -> None:
    data, reading, told = corpus(tmp_path / "data"), reader(batch_tokens=50, group_tokens=200), StopAfter(0)
    (tmp_path / "whole").mkdir()
    some = {"tokens": 2500}  # fewer than there are, so that going on must know how many are left
    whole = run_labelling(
        settings(tmp_path / "whole" / "labels.parquet", data, **some), sae(), reading, told, SMALL_STEPS
    )
    assert parts_of(told) == [
        "measuring lengths",
        "reading documents",
        "sorting by feature",
        "logit lens and output scores",
        "neighbours",
        "labels and examples",
    ]
    assert min(told.doing.count(part) for part in parts_of(told)) >= 3
    out = tmp_path / "stopped" / "labels.parquet"
    for part in (part for part in parts_of(told) for _ in range(2)):
        num = 12 if part == "reading documents" else 1  # where each forward is told, and not each group of them
        with pytest.raises(Stopped):
            run_labelling(settings(out, data, **some), sae(), reading, StopAfter(num, part), SMALL_STEPS)
        assert not out.exists()
    finished = run_labelling(settings(out, data, **some), sae(), reading, sizes=SMALL_STEPS)
    assert finished.table.equals(whole.table)
    assert replace(finished.info, date="") == replace(whole.info, date="")
    assert files_in(out.parent) == files_in(tmp_path / "whole") == ["labels.parquet"]


@pytest.mark.parametrize("num", [1, 3, 6])
def test_rows_written_but_not_committed_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    data, reading = corpus(tmp_path / "data"), reader(batch_tokens=50, group_tokens=200)
    whole = run_labelling(settings(tmp_path / "whole.parquet", data), sae(), reading, sizes=SMALL_STEPS)
    commit, left = ColumnStore.commit, [num]

    def killed(self: ColumnStore, **state: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Stopped
        commit(self, **state)

    with monkeypatch.context() as patch:
        patch.setattr(ColumnStore, "commit", killed)
        with pytest.raises(Stopped):
            run_labelling(settings(tmp_path / "labels.parquet", data), sae(), reading, sizes=SMALL_STEPS)
    finished = run_labelling(settings(tmp_path / "labels.parquet", data), sae(), reading, sizes=SMALL_STEPS)
    assert finished.table.equals(whole.table)


def test_the_file_says_what_it_was_made_of(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    info = run_labelling(settings(tmp_path / "labels.parquet", data), sae(), reader()).info
    assert (info.sae, info.model, info.decoder_sha256) == ("mine", "tiny", decoder_sha256(sae()))
    assert info.model_sha256 == {"model.safetensors": "0" * 64}
    assert info.data_sha256 == {name: sha256_of(data / name) for name in ("a.jsonl.gz", "b.jsonl")}
    assert info.settings["bars"] == {"input": 0.5, "say": 0.5, "output": 0.1}
    assert (info.settings["context"], info.settings["reads"]) == (40, ["resid_post 1"])
    assert (info.warnings, set(info.versions)) == ((), {"saeclamp", "torch", "transformers"})


def test_labels_of_other_weights_are_not_overwritten(tmp_path: Path) -> None:
    data, out = corpus(tmp_path / "data"), tmp_path / "labels.parquet"
    run_labelling(settings(out, data, tokens=300), sae(), reader())
    before = sha256_of(out)
    with pytest.raises(
        LabelError, match=r"holds labels of other weights \(of mine\): delete it, or give another --out"
    ):
        run_labelling(settings(out, data), sae(seed=1), reader())
    assert (sha256_of(out), files_in(tmp_path)) == (before, ["data", "labels.parquet"])


def test_explanations_of_the_same_weights_are_kept(tmp_path: Path) -> None:
    data, out = corpus(tmp_path / "data"), tmp_path / "labels.parquet"
    first = run_labelling(settings(out, data, tokens=300), sae(), reader())
    first.with_explanations({4: CATS}).write(out)
    again = run_labelling(settings(out, data), sae(), reader())
    assert again.explanations() == {4: CATS}
    assert again.info.num_tokens > first.info.num_tokens


def test_an_unfinished_run_goes_on_only_with_the_same(tmp_path: Path) -> None:
    data, out = corpus(tmp_path / "data"), tmp_path / "labels.parquet"
    with pytest.raises(Stopped):
        run_labelling(settings(out, data), sae(), reader(), StopAfter(1, "reading documents"))
    with pytest.raises(
        LabelError, match=r"another tokens \(1000000, and now 300\).* To begin anew, delete that folder"
    ):
        run_labelling(settings(out, data, tokens=300), sae(), reader())
    with pytest.raises(LabelError, match="another sae W_dec"):
        run_labelling(settings(out, data), replace(sae(), W_dec=sae(seed=1).W_dec), reader())
    with pytest.raises(LabelError, match="another context"):
        run_labelling(settings(out, data), sae(), replace(reader(), context=39))


def test_two_processes_do_not_share_the_work(tmp_path: Path) -> None:
    data, out = corpus(tmp_path / "data"), tmp_path / "labels.parquet"

    def meanwhile(doing: str, *_: Any) -> None:
        if doing == "reading documents":
            with pytest.raises(SAEError, match="Another process is at work in"):
                run_labelling(settings(out, data), sae(), reader())
            raise Stopped

    with pytest.raises(Stopped):
        run_labelling(settings(out, data), sae(), reader(), meanwhile)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    (tmp_path / "file").touch()
    with pytest.raises(LabelError, match="cannot be written: Not a directory"):
        run_labelling(settings(tmp_path / "file" / "labels.parquet", data), sae(), reader())
    with pytest.raises(LabelError, match="is a folder: give a file's name"):
        run_labelling(settings(data, data), sae(), reader())
    with pytest.raises(LabelError, match="At most 2,147,483,647 tokens"):
        run_labelling(settings(tmp_path / "labels.parquet", data, tokens=2**31), sae(), reader())


def test_without_data_the_packaged_text_is_read_and_called_small(tmp_path: Path) -> None:
    from saeclamp_saes.labelling.run import LabelSettings
    from saeclamp_saes.lm.text import SAMPLE

    out = tmp_path / "labels.parquet"
    labels = run_labelling(LabelSettings(out, "mine", "tiny", {}, tokens=500), sae(), reader())
    assert set(labels.info.data_sha256) == {SAMPLE.name}
    assert "packaged sample text, which is small" in labels.info.warnings[0]


def test_an_sae_beside_the_stream_has_nothing_but_what_it_reads(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    beside = replace(sae(), reads=(replace_point("attn_z"),), writes=(replace_point("attn_z"),))
    reading = replace(reader(), sites=beside.reads)
    labels = run_labelling(settings(tmp_path / "labels.parquet", data), beside, reading)
    assert "no logit lens, and no output scores" in labels.info.warnings[0]
    row = labels[0]
    assert (row.top_logits, row.bottom_logits, row.output_label, row.output_score) == (None, None, None, None)
    assert row.examples
    assert row.input_score is not None


def test_a_transcoder_has_a_lens_and_no_output_score(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    through = replace(sae(), reads=(replace_point("mlp_in"),), writes=(replace_point("mlp_out"),), kind="transcoder")
    labels = run_labelling(settings(tmp_path / "labels.parquet", data), through, replace(reader(), sites=through.reads))
    assert labels.info.warnings == (
        "The SAE does not edit the residual stream at the place it reads: no output scores.",
    )
    row = labels[0]
    assert row.top_logits is not None
    assert len(row.top_logits) == 10
    assert (row.output_label, row.output_score) == (None, None)


class Sentencepiece:
    """What such a tokenizer does to a token alone."""

    def decode(self, ids: list[int]) -> str:
        return {1: "bridge", 2: "bridge", 3: "\n"}[ids[0]]

    def convert_ids_to_tokens(self, token: int) -> str:
        return {1: "\u2581bridge", 2: "bridge", 3: "<0x0A>"}[token]


def test_a_token_keeps_the_blank_that_it_begins_with() -> None:
    strings = token_strings(Sentencepiece())
    assert [strings(token) for token in (1, 2, 3)] == [" bridge", "bridge", "\n"]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an SAE of its second layer, and data."""
    folder = tmp_path_factory.mktemp("disk")
    make("llama").save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    saelens.write(folder / "sae", layer=1, d_sae=D_SAE, architecture="standard", model_name="tiny")
    corpus(folder / "data", 20)
    return folder


def arguments(folder: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    data = ["--data", str(folder / "data"), "--context", "40"]
    return parser.parse_args(["label", str(folder / "sae"), "--model", str(folder / "model"), *data, *more])


@pytest.fixture
def clean(on_disk: Path) -> Iterator[Path]:
    yield on_disk
    (on_disk / "sae" / "labels.parquet").unlink(missing_ok=True)


def test_the_command_prints_a_summary(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments(clean)
    assert args.run(args) == 0
    out = capsys.readouterr().out
    labels = read_labels(clean / "sae", read_sae(clean / "sae"))
    assert f"written\t{clean / 'sae' / 'labels.parquet'}" in out
    kinds = [row.kind for row in labels]
    for kind in ("input", "say", "output", "none"):
        assert f"labelled {kind}\t{kinds.count(kind)} of {D_SAE}" in out
    best = max(labels, key=lambda row: row.output_score or 0.0)
    assert f"\n{best.index}\t{best.output_score:.3f}\t" in out
    assert labels.info.model == "model"


def test_the_command_prints_json_and_nothing_else(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments(clean, "--json", "--tokens", "0.5k", "--out", str(clean / "other.parquet"))
    assert args.run(args) == 0
    printed = json.loads(capsys.readouterr().out)
    labels = LabelTable.read(clean / "other.parquet")
    rows = list(labels)
    assert printed["path"] == str(clean / "other.parquet")
    assert (printed["num_features"], printed["num_tokens"]) == (D_SAE, labels.info.num_tokens)
    assert printed["dead"] == sum(row.num_active == 0 for row in rows)
    assert printed["median_density"] == sorted(row.density for row in rows)[D_SAE // 2]
    scores = sorted((row.output_score for row in rows if row.output_score is not None), reverse=True)
    assert [row["output_score"] for row in printed["best_by_output_score"]] == scores[:5]
    assert not (clean / "sae" / "labels.parquet").exists()


def test_the_command_says_when_it_is_stopped(
    clean: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saeclamp_saes.labelling.run.run_labelling", stop)
    args = arguments(clean)
    assert args.run(args) == 130
    assert capsys.readouterr().err.splitlines() == [
        f"saeclamp: not read, because it is no data: {clean / 'data' / 'README.md'}.",
        "saeclamp: stopped; the same command goes on with it.",
    ]


def test_what_is_wrong_is_said_before_the_model_is_opened(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load_model", lambda *_: pytest.fail("the model was opened"))
    for option, path, said in (
        ("--data", clean / "nothing", "There is no file or folder"),
        ("--out", clean, "is a folder"),
    ):
        args = arguments(clean, option, str(path))
        with pytest.raises(SAEError, match=said):
            args.run(args)


def test_help_is_printed_without_heavy_imports() -> None:
    program = (
        "import argparse, sys; from saeclamp_saes.cli import label; p = argparse.ArgumentParser(); "
        "label.register(p.add_subparsers()); p.format_help(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'pyarrow', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_sae_in_half_precision_has_the_hash_of_what_is_read(tmp_path: Path) -> None:
    saelens.write(tmp_path, layer=1, d_sae=D_SAE, dtype=torch.float16)
    of: SAE = read_sae(tmp_path)
    assert decoder_sha256(of) == decoder_sha256(replace(of, W_dec=of.W_dec.double()))
