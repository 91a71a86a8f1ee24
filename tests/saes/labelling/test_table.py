"""The file of labels: what goes in comes out, for the same weights only."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.support.tiny_labels import feature

from saeclamp_saes import SAE, Site
from saeclamp_saes.errors import LabelError
from saeclamp_saes.io.hashes import tensor_sha256
from saeclamp_saes.labelling import table
from saeclamp_saes.labelling.label_file import LabelFile
from saeclamp_saes.labelling.schema import SCHEMA
from saeclamp_saes.labelling.table import (
    Explanation,
    Feature,
    LabelsInfo,
    LabelTable,
    Neighbour,
    TokenLogit,
    decoder_sha256,
    labels_path,
    read_labels,
    write_labels,
)

SITE = Site("resid_post", 1)
CATS = Explanation("cats and their owners", "a-model", 0.75)


def sae(seed: int = 0, dtype: torch.dtype = torch.float32) -> SAE:
    torch.manual_seed(seed)
    tensors = (torch.randn(3, 4), torch.zeros(4), torch.randn(4, 3), torch.zeros(3), torch.zeros(4))
    return SAE((SITE,), (SITE,), *tensors).to(dtype=dtype)


def features() -> list[Feature]:
    return [
        feature(
            0,
            histogram=(3, 0, 1),
            kind="input",
            label='token " a"',
            label_score=0.5,
            input_label='token " a"',
            input_score=0.5,
        ),
        feature(1, top_logits=(TokenLogit(" a", 7, -0.5),), bottom_logits=(), neighbours=(Neighbour(3, 0.25),)),
        feature(2, num_active=0, density=0.0, examples=()),
        feature(
            3, inactive=(), max_act=1.5, top_act=2.0, explanation="dogs", explanation_source="x", explanation_score=None
        ),
    ]


def labels(of: SAE) -> LabelTable:
    info = LabelsInfo(
        sae="mine",
        decoder_sha256=decoder_sha256(of),
        model="tiny",
        model_sha256={"model.safetensors": "0" * 64},
        data_sha256={"a.txt": "1" * 64},
        num_tokens=24,
        settings={"context": 40, "bars": {"input": 0.5}},
        warnings=("Few.",),
        versions={"torch": "2"},
        date="2026-01-02T03:04:05+00:00",
    )
    return LabelTable.of(info, features())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = labels(sae())
    made.write(tmp_path / "labels.parquet")
    read = read_labels(tmp_path, sae())
    assert list(read) == features() == [read[index] for index in range(4)]
    assert (read.info, len(read)) == (made.info, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.parquet"]
    for index in (-1, 4):
        with pytest.raises(IndexError):
            read[index]


def test_columns_are_the_fields_of_a_feature() -> None:
    assert SCHEMA.names == [field.name for field in fields(Feature)]


def test_any_reader_of_parquet_can_read_it(tmp_path: Path) -> None:
    labels(sae()).write(tmp_path / "labels.parquet")
    frame = pq.read_table(tmp_path / "labels.parquet").to_pandas().set_index("index")
    assert frame.loc[0, "label"] == 'token " a"'
    assert frame.loc[3, "max_act"] == 1.5
    assert list(frame.loc[0, "examples"][0]["tokens"]) == [" a", "\ufffd", '"\n']


def test_labels_of_other_weights_are_refused(tmp_path: Path) -> None:
    labels(sae()).write(tmp_path / "labels.parquet")
    swapped = replace(sae(), W_dec=sae().W_dec[[1, 0, 2, 3]])
    with pytest.raises(LabelError, match=r"are of other weights \(of mine, labelled 2026-01-02\)"):
        read_labels(tmp_path / "labels.parquet", swapped)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([3, 2, 1, 0], "its features are not in order"),
        ([0, 1, 3], "its features are not in order"),
        ([0, 1, 2, 2], "its features are not in order"),
        ([0, 1], "it has labels of 2 features, and the SAE has 4"),
        ([], "it has labels of 0 features, and the SAE has 4"),
    ],
)
def test_rows_that_are_not_all_features_in_order_are_refused(tmp_path: Path, rows: list[int], sentence: str) -> None:
    made = labels(sae())
    replace(made, table=made.table.take(pa.array(rows, pa.int64()))).write(tmp_path / "labels.parquet")
    with pytest.raises(LabelError, match=sentence):
        read_labels(tmp_path, sae())


def test_what_a_terminal_would_obey_is_left_out_of_a_refusal(tmp_path: Path) -> None:
    made = labels(sae())
    replace(made, info=replace(made.info, sae="mine\x1b[2J\n", date="\x1b]0;x\x07")).write(tmp_path / "labels.parquet")
    with pytest.raises(LabelError, match=r"of other weights \(of mine \[2J, labelled \]0;x\)") as refused:
        read_labels(tmp_path, sae(1))
    assert str(refused.value).isprintable()


def test_the_hash_is_of_the_decoder_as_little_endian_floats_row_by_row() -> None:
    numbers = [float(value) for row in sae().W_dec.tolist() for value in row]
    assert decoder_sha256(sae()) == hashlib.sha256(struct.pack("<12f", *numbers)).hexdigest()
    transposed = replace(sae(), W_dec=sae().W_dec.T.contiguous().T)
    assert decoder_sha256(transposed) == decoder_sha256(sae())
    halves = sae(dtype=torch.bfloat16)
    assert decoder_sha256(halves) == decoder_sha256(halves.to(dtype=torch.float32))


def test_parts_of_a_decoder_hash_like_the_whole() -> None:
    assert tensor_sha256(sae().W_dec, at_once=3) == decoder_sha256(sae())


def test_explanations_are_replaced_in_a_copy(tmp_path: Path) -> None:
    made = labels(sae())
    explained = made.with_explanations({0: CATS, 3: None})
    explained.write(tmp_path / "labels.parquet")
    read = read_labels(tmp_path, sae())
    assert read.explanations() == explained.explanations() == {0: CATS}
    assert (read[0].explanation, read[0].explanation_source, read[0].explanation_score) == (
        "cats and their owners",
        "a-model",
        0.75,
    )
    assert made.explanations() == {3: Explanation("dogs", "x", None)}
    assert replace(read[0], explanation=None, explanation_source=None, explanation_score=None) == features()[0]
    assert read.info == made.info
    with pytest.raises(LabelError, match=r"no feature 4: the labels are of features 0 to 3"):
        made.with_explanations({4: CATS})


def test_what_is_no_file_of_labels_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"There are no labels at .*labels\.parquet: make them with"):
        read_labels(tmp_path, sae())
    (tmp_path / "labels.parquet").write_bytes(b"no parquet")
    with pytest.raises(LabelError, match="cannot be read as Parquet") as raised:
        read_labels(tmp_path, sae())
    assert str(raised.value).isprintable()
    pq.write_table(labels(sae()).table.select(["index"]), tmp_path / "labels.parquet")
    with pytest.raises(LabelError, match="holds no labels that this version"):
        read_labels(tmp_path, sae())


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels(sae()).write(tmp_path / "labels.parquet")

    def batches() -> Any:
        yield table.to_batch(features())
        raise OSError(28, "No space left on device")

    with pytest.raises(LabelError, match="No space left on device"):
        table.write_labels(tmp_path / "labels.parquet", labels(sae()).info, batches())
    assert list(read_labels(tmp_path, sae())) == features()
    assert [path.name for path in tmp_path.iterdir()] == ["labels.parquet"]


def test_labels_lie_beside_the_weights(tmp_path: Path) -> None:
    assert labels_path(tmp_path) == tmp_path / "labels.parquet"
    (tmp_path / "layer_3.safetensors").touch()
    assert labels_path(tmp_path / "layer_3.safetensors") == tmp_path / "layer_3.labels.parquet"


def test_single_rows_are_read_from_an_open_file_whatever_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    first, *others = features()
    write_labels(path, labels(sae()).info, [table.to_batch([first]), table.to_batch(others)])
    opened = LabelFile(path)
    assert (opened.info, len(opened)) == (labels(sae()).info, 4)
    assert opened.max_acts == [None, None, None, 1.5]
    (tmp_path / "other").write_bytes(b"another file takes its place")
    (tmp_path / "other").replace(path)
    assert [opened[index] for index in (3, 0, 2, 1)] == [features()[index] for index in (3, 0, 2, 1)]
    for index in (-1, 4):
        with pytest.raises(IndexError):
            opened[index]


def test_what_is_no_file_of_labels_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="There are no labels"):
        LabelFile(tmp_path / "labels.parquet")
    (tmp_path / "labels.parquet").write_bytes(b"nothing")
    with pytest.raises(LabelError, match="cannot be read as Parquet"):
        LabelFile(tmp_path / "labels.parquet")
    write_labels(tmp_path / "labels.parquet", labels(sae()).info, [table.to_batch(features()[::-1])])
    with pytest.raises(LabelError, match="not in order"):
        LabelFile(tmp_path / "labels.parquet")


def test_a_file_of_version_2_which_had_no_histogram_is_read_all_the_same(tmp_path: Path) -> None:
    made = labels(sae())
    made.write(tmp_path / "labels.parquet")
    older = pq.read_table(tmp_path / "labels.parquet").drop_columns(["histogram"])
    noted = json.loads(older.schema.metadata[b"saeclamp_labels"]) | {"version": 2}
    pq.write_table(older.replace_schema_metadata({"saeclamp_labels": json.dumps(noted)}), tmp_path / "labels.parquet")
    assert list(read_labels(tmp_path, sae())) == [replace(one, histogram=None) for one in features()]
    assert LabelFile(tmp_path / "labels.parquet")[3] == replace(features()[3], histogram=None)
    again = read_labels(tmp_path, sae()).with_explanations({0: CATS})
    again.write(tmp_path / "labels.parquet")
    assert read_labels(tmp_path, sae())[0].explanation == CATS.text


def test_a_file_that_says_another_version_than_it_is_of_is_refused(tmp_path: Path) -> None:
    labels(sae()).write(tmp_path / "labels.parquet")
    whole = pq.read_table(tmp_path / "labels.parquet")
    for version in (1, 2, 4, "3"):
        noted = json.loads(whole.schema.metadata[b"saeclamp_labels"]) | {"version": version}
        pq.write_table(
            whole.replace_schema_metadata({"saeclamp_labels": json.dumps(noted)}), tmp_path / "other.parquet"
        )
        with pytest.raises(LabelError, match="no labels that this version of saeclamp knows"):
            LabelFile(tmp_path / "other.parquet")
