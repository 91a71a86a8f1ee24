"""Neuronpedia's exports are read as they are, and what is not one is named by file and line."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.explain_endpoint import labels

from saeclamp_saes.cli import labels as command
from saeclamp_saes.errors import LabelError
from saeclamp_saes.labelling.neuronpedia import ImportedLabels, read_exports
from saeclamp_saes.labelling.table import Explanation, LabelTable

FEATURES = 100
SOURCE = "neuronpedia:gpt-4o-mini/oai_token-act-pair"


def line(index: Any = "12", description: Any = "words about time", **values: Any) -> dict[str, Any]:
    """As an export has it, whose keys these are."""
    return {
        "id": "cm1",
        "modelId": "gpt2-small",
        "layer": "6-res-jb",
        "index": index,
        "authorId": "cl1",
        "description": description,
        "embedding": "[0.25,-1.0]",
        "typeName": "oai_token-act-pair",
        "explanationModelName": "gpt-4o-mini",
        "umap_x": 0.0,
        **values,
    }


def scored(**by_type: float) -> list[dict[str, Any]]:
    return [{"value": value, "explanationScoreTypeName": name, "jsonDetails": "{}"} for name, value in by_type.items()]


def written(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)
    path.write_bytes(gzip.compress(data.encode()) if path.suffix == ".gz" else data.encode())
    return path


def read(*records: Any, tmp_path: Path, **options: Any) -> ImportedLabels:
    return read_exports([written(tmp_path / "x.jsonl", *records)], FEATURES, **options)


@pytest.mark.parametrize("name", ["batch-0.jsonl", "batch-0.jsonl.gz"])
def test_a_line_is_an_explanation(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, line(), "", line(7, "cats", newKey={"x": [1]}))
    found = read_exports([path], FEATURES)
    assert found.explanations == {12: Explanation("words about time", SOURCE), 7: Explanation("cats", SOURCE)}
    assert (found.place, found.num_lines, found.num_empty, found.num_choices) == ("gpt2-small/6-res-jb", 2, 0, 0)


def test_a_packed_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "downloaded"
    path.write_bytes(gzip.compress(json.dumps(line()).encode()))
    assert set(read_exports([path], FEATURES).explanations) == {12}


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    """Of equal explanations the last counts."""
    for number in (10, 9, 1):
        written(tmp_path / f"batch-{number}.jsonl.gz", line("3", f"from {number}"))
    written(tmp_path / "notes.txt", "no data")
    assert read_exports([tmp_path], FEATURES).explanations[3].text == "from 10"


@pytest.mark.parametrize(
    ("choices", "best", "score", "chosen_by"),
    [
        pytest.param(
            [line(1, "a", scores=scored(recall=0.5)), line(1, "b", scores=scored(recall=0.9)), line(1, "c")],
            "b",
            0.9,
            "the best by recall, else the newest",
            id="score",
        ),
        pytest.param(
            [line(1, "a", scores=scored(recall=-0.5)), line(1, "b", createdAt="2026")],
            "a",
            -0.5,
            "the best by recall, else the newest",
            id="any-score-before-none",
        ),
        pytest.param(
            [line(1, "a", createdAt="2025-03-01T00:00:00"), line(1, "b", createdAt="2024-12-31T00:00:00")],
            "a",
            None,
            "the newest, because none has a score",
            id="newest",
        ),
        pytest.param([line(1, "a"), line(1, "b")], "b", None, "the newest, because none has a score", id="last"),
        pytest.param(
            [line(1, "a", scores=scored(recall=0.5)), line(1, "b", createdAt="2026", scores=scored(recall=0.5))],
            "b",
            0.5,
            "the best by recall, else the newest",
            id="newest-of-the-best",
        ),
    ],
)
def test_of_several_one_is_chosen(
    tmp_path: Path, choices: list[Any], best: str, score: float | None, chosen_by: str
) -> None:
    found = read(*choices, line(2), tmp_path=tmp_path)
    assert (found.explanations[1].text, found.explanations[1].score) == (best, score)
    assert (found.num_choices, found.chosen_by) == (1, chosen_by)


def test_scores_of_different_types_are_not_compared(tmp_path: Path) -> None:
    choices = (line(1, "a", scores=scored(fuzz=0.9)), line(1, "b", scores=scored(recall=0.5, fuzz=0.1)))
    with pytest.raises(LabelError, match=r"scores of several types, which cannot be compared \(fuzz, recall\)"):
        read(*choices, tmp_path=tmp_path)
    assert read(*choices, tmp_path=tmp_path, score_type="recall").explanations[1].text == "b"
    assert read(*choices, tmp_path=tmp_path, score_type="fuzz").explanations[1] == Explanation("a", SOURCE, 0.9)
    with pytest.raises(LabelError, match="No explanation has a score of type 'x'; there are: fuzz, recall"):
        read(*choices, tmp_path=tmp_path, score_type="x")


def test_labels_of_several_saes_are_not_mixed(tmp_path: Path) -> None:
    mixed = (line(1), line(2, layer="7-res-jb"), line(999, modelId="another"))
    with pytest.raises(LabelError, match=r"x\.jsonl, line 3: there is no feature 999"):
        read(*mixed, tmp_path=tmp_path)
    with pytest.raises(
        LabelError, match=r"labels of several SAEs, gpt2-small/6-res-jb .*line 1.* and gpt2-small/7-res-jb"
    ):
        read(*mixed[:2], tmp_path=tmp_path)
    assert set(read(*mixed, tmp_path=tmp_path, place="gpt2-small/7-res-jb").explanations) == {2}
    with pytest.raises(LabelError, match="There are no explanations of gpt2-small/8-res-jb in"):
        read(*mixed, tmp_path=tmp_path, place="gpt2-small/8-res-jb")


def test_who_said_it_may_be_unknown_and_texts_are_one_line(tmp_path: Path) -> None:
    hostile = line(1, "cats\n\x1b[2Jand\u2028dogs", typeName=None, explanationModelName="a\x07b")
    found = read(hostile, line(2, ""), line(3, None), tmp_path=tmp_path)
    assert found.explanations == {1: Explanation("cats [2Jand dogs", "neuronpedia:a b/unknown")}
    assert (found.num_lines, found.num_empty) == (3, 2)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        pytest.param("{", "is not JSON", id="broken"),
        pytest.param("[" * 100_000, "is not JSON", id="nested"),
        pytest.param("[]", "is not a JSON object", id="list"),
        pytest.param(line(FEATURES), f"there is no feature {FEATURES}, the SAE has 0 to {FEATURES - 1}", id="outside"),
        pytest.param(line("1e3"), "its index must be a feature's number, not '1e3'", id="no-number"),
        pytest.param(line("9" * 5000), "its index must be a feature's number, not '999", id="endless"),
        pytest.param(line(-1), "its index must be", id="negative"),
        pytest.param(line(1.5), "its index must be", id="fraction"),
        pytest.param(line(True), "its index must be", id="boolean"),
        pytest.param({"description": "x"}, "its index must be a feature's number, not None", id="no-index"),
        pytest.param(line(1, ["x"]), "its description is no text", id="no-text"),
        pytest.param(line(1, scores=[{"value": "high"}]), "must have a number as its value", id="score"),
        pytest.param(line(1, scores=[3]), "must have a number as its value", id="no-score"),
        pytest.param(line(1, scores=scored(x=float("nan"))), "must have a number as its value", id="nan"),
        pytest.param(line(1, scores=[{"value": True}]), "must have a number as its value", id="boolean-score"),
        pytest.param(line(1, scores=scored(x=1e39)), "as its value, of at most 3.4e+38", id="beyond-float32"),
        pytest.param(line(1, scores=scored(x=-1e39)), "as its value, of at most 3.4e+38", id="below-float32"),
        pytest.param(line(1, scores=scored(x=float("inf"))), "must have a number as its value", id="infinite"),
        pytest.param(line(1, scores=scored(x=10**400)), "must have a number as its value", id="endless-score"),
        pytest.param(line(1, "x" * (1 << 21)), "is longer than 1 MiB", id="too-long"),
        pytest.param(" " * (1 << 21), "is longer than 1 MiB", id="too-long-and-blank"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(tmp_path: Path, bad: Any, sentence: str) -> None:
    with pytest.raises(LabelError) as refused:
        read(line(), "", bad, line(), tmp_path=tmp_path)
    assert f"{tmp_path}/x.jsonl, line 3" in str(refused.value)
    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 400


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    damaged = written(tmp_path / "batch-0.jsonl.gz", *[line(1, f"{number}" * 20) for number in range(50)])
    damaged.write_bytes(damaged.read_bytes()[:-40])
    (tmp_path / "empty").mkdir()
    for path, sentence in (
        (damaged, "batch-0.jsonl.gz cannot be read"),
        (tmp_path / "missing", "There is no file or folder"),
        (tmp_path / "empty", "holds no file that ends in .jsonl or .jsonl.gz"),
        (written(tmp_path / "none.jsonl"), "There are no explanations in"),
    ):
        with pytest.raises(LabelError, match=sentence):
            read_exports([path], FEATURES)


def run(*argv: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["labels", "import-neuronpedia", *map(str, argv)])
    status: int = args.run(args)
    return status


def test_the_command_writes_them_into_the_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, before = tmp_path / "labels.parquet", Explanation("mine", "llm:x", 0.5)
    labels(law=before).write(path)
    export = written(tmp_path / "batch-0.jsonl.gz", line(2, "laws"), line(3, "seas"), line(3, "the sea"), line(4, ""))
    assert run(export, "--into", path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "path": str(path),
        "from": "gpt2-small/6-res-jb",
        "lines": 4,
        "empty": 1,
        "imported": 1,
        "kept": 1,
        "features_with_several": 1,
        "chosen_by": "the newest, because none has a score",
    }
    assert LabelTable.read(path).explanations() == {2: before, 3: Explanation("the sea", SOURCE)}
    assert run(export, "--into", path, "--replace") == 0
    printed = capsys.readouterr()
    assert "imported\t2 of 9 features" in printed.out
    assert "make sure that gpt2-small/6-res-jb is this SAE" in printed.err
    assert LabelTable.read(path).explanations() == {2: Explanation("laws", SOURCE), 3: Explanation("the sea", SOURCE)}


def test_labels_of_another_sae_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    labels().write(path)
    before = path.read_bytes()
    export = written(tmp_path / "batch-0.jsonl", line(2), line(9))
    with pytest.raises(LabelError, match="line 2: there is no feature 9, the SAE has 0 to 8"):
        run(export, "--into", path)
    assert path.read_bytes() == before
