"""Which files are data, how their lines are read, and what is said of those that cannot be."""

from __future__ import annotations

import argparse
import codecs
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.tiny_models import make
from tests.support.tiny_training import corpus, reader, tokenizer
from torch import nn

from saeclamp_saes.cli import train
from saeclamp_saes.errors import TrainingError, VerificationError
from saeclamp_saes.lm.documents import Document, check_sides, data_files, documents, list_skipped
from saeclamp_saes.lm.harvest import check_documents

LINE = '{"text": "one line of text"}\n'


def test_json_lines_are_read_whatever_they_are_called_and_texts_called_license_are_not(tmp_path: Path) -> None:
    for name in ("license-texts.jsonl", "README.jsonl", "LICENSE.txt", "readme.md", "notes.bin", ".hidden"):
        (tmp_path / name).write_text(LINE)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.jsonl").write_text(LINE)
    assert [file.name for file in data_files([tmp_path])] == ["README.jsonl", "license-texts.jsonl"]
    assert [file.name for file in list_skipped([tmp_path])] == ["LICENSE.txt", "more", "notes.bin", "readme.md"]


def test_a_folder_of_descriptions_alone_is_said_to_hold_no_data(tmp_path: Path) -> None:
    (tmp_path / "LICENSE.txt").write_text("some words")
    with pytest.raises(TrainingError, match=r"holds no data, .* but are not called README or LICENSE\. Folders in it"):
        data_files([tmp_path])


def test_capital_letters_in_an_ending_are_as_good(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL").write_text(LINE)
    (tmp_path / "B.Jsonl.GZ").write_bytes(gzip.compress(LINE.encode()))
    (tmp_path / "C.TXT").write_text("a text\n")
    texts = [document.text for document in documents(data_files([tmp_path]))]
    assert texts == ["one line of text", "one line of text", "a text\n"]


@pytest.mark.parametrize("name", ["data.json", "DATA.JSON", "data.json.gz"])
def test_a_file_called_json_is_not_read_as_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(LINE)
    with pytest.raises(TrainingError, match="is called JSON, and JSON lines are read"):
        data_files([tmp_path / name])


def test_one_file_that_is_named_in_two_ways_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text(LINE)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    named = [Path("a.jsonl"), tmp_path / "a.jsonl", tmp_path / ".." / tmp_path.name / "a.jsonl", tmp_path]
    assert data_files(named) == [Path("a.jsonl")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_byte_order_mark_is_not_of_the_text(tmp_path: Path, name: str) -> None:
    content = codecs.BOM_UTF8 + LINE.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert [document.text for document in documents([tmp_path / name])] == ["one line of text"]


def test_half_of_a_surrogate_pair_is_read_as_the_replacement_character(tmp_path: Path) -> None:
    class Heard:
        """A tokenizer that keeps what it is given."""

        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer(), name)

        def __call__(self, text: str, **options: object) -> object:
            heard.append(text)
            return tokenizer()(text, **options)

    heard: list[str] = []
    whole = "a line of text with \U0001f600 in it, "
    lines = [{"text": f"{whole}\ud800"}, {"messages": [{"role": "user", "content": f"{whole}\udfff"}]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    reading = replace(reader(), tokenizer=Heard())
    for document in documents([tmp_path / "a.jsonl"]):
        assert reading.parts(document)
    assert f"{whole}\ufffd" in heard
    assert f"<s>user:{whole}\ufffd" in heard


def test_a_conversation_that_the_template_refuses_is_named_by_its_line(tmp_path: Path) -> None:
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('users begin') }}{% endif %}hello"
    fine, bad = ({"messages": [{"role": role, "content": "x"}]} for role in ("user", "assistant"))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [fine, fine, bad])))
    refusing = replace(reader(), tokenizer=tokenizer(template))
    with pytest.raises(TrainingError, match=r"the conversation of .*a\.jsonl, line 3: users begin"):
        check_documents(refusing, [tmp_path / "a.jsonl"])


def test_a_bad_line_at_the_end_is_found_without_the_model(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    with (data / "b.jsonl").open("a") as file:
        file.write('\n{"text": 1}')
    blind = replace(reader(), model=nn.Identity())
    with pytest.raises(TrainingError, match=r"b\.jsonl, line 31 is neither"):
        check_documents(blind, data_files([data]))


def test_a_token_beyond_the_models_vocabulary_is_refused() -> None:
    small = make("llama")
    small.resize_token_embeddings(20)  # type: ignore[operator]
    with pytest.raises(VerificationError, match=r"tokenizer is of another model: it makes token \d+"):
        reader(small).parts(Document("zyxwvutsrqponmlkjihgfedcba", None))


@pytest.mark.parametrize(
    ("lines", "share", "says"),
    [
        pytest.param(
            1, 0.0, "The data are 1 document, of which none is held out .* a larger --held-out", id="no-share"
        ),
        pytest.param(3, 1e-9, "The data are 3 documents, of which none is held out", id="a-tiny-share"),
        pytest.param(2, 1 - 1e-12, "2 documents, of which all are held out .* a smaller --held-out", id="all"),
    ],
)
def test_data_of_which_no_document_could_be_held_out_are_refused_before_a_model_is_opened(
    tmp_path: Path, lines: int, share: float, says: str
) -> None:
    (tmp_path / "few.jsonl").write_text("".join(f'{{"text": "document {number}"}}\n' for number in range(lines)))
    with pytest.raises(TrainingError, match=says) as refused:
        check_sides([tmp_path / "few.jsonl"], share)
    assert "A text file is one document" in str(refused.value)


def test_the_command_says_it_before_it_looks_for_the_model(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("One file is one document.\n" * 20)
    parser = argparse.ArgumentParser()
    train.register(parser.add_subparsers(), str)
    args = parser.parse_args(
        [
            "train",
            "--model",
            "no/such-model",
            "--layer",
            "1",
            "--data",
            str(tmp_path / "one.txt"),
            "--out",
            str(tmp_path),
        ]
    )
    with pytest.raises(TrainingError, match="The data are 1 document, of which none is held out to measure on"):
        args.run(args)
