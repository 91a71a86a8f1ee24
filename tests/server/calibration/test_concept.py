"""`saeclamp calibrate` with a table of labels, which say what the user does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.support.blank_label import blank_label
from tests.support.calibration_stub import Stub, curve_of, run, serving, words, write_sae
from tests.support.checkpoints import make_sae

from saeclamp_saes import read_sae
from saeclamp_saes.errors import UserError
from saeclamp_saes.labelling.table import Example, Feature, LabelsInfo, LabelTable, TokenLogit, decoder_sha256
from saeclamp_server.calibration.errors import CalibrationError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sae(tmp_path)


@pytest.fixture
def server(folder: Path) -> Iterator[Stub]:
    with serving(folder) as running:
        yield running


def label(index: int) -> Feature:
    """Of feature 6: it is active on bridges, and promotes a word that every answer holds."""
    examples = [
        Example(9, ("A", " long", f" {word}", "."), (0.0, 0.0, 4.0, 0.0), 2, 4.0, number)
        for number, word in enumerate(["bridge", "bridge", "bridge", "arch", "arch", "pier"])
    ]
    return blank_label(
        index=index,
        num_active=3,
        max_act=100.0 if index == 6 else None,
        top_act=101.0,
        top_logits=(TokenLogit(" number", 0, 1.0),),
        examples=tuple(examples) if index == 6 else (),
    )


def write_labels(folder: Path, sae: Path) -> Path:
    info = LabelsInfo("mine", decoder_sha256(read_sae(sae)), "tiny", {}, {}, 1000, {}, (), {}, "2026-11-23T00:00:00")
    path = folder / "labels.parquet"
    LabelTable.of(info, map(label, range(24))).write(path)
    return path


@pytest.mark.parametrize("beside", [True, False])
def test_scale_words_and_examples_come_from_the_labels(
    server: Stub, folder: Path, tmp_path: Path, beside: bool
) -> None:
    path = write_labels(folder if beside else tmp_path, folder)
    arguments = words(server, folder, *(() if beside else ("--examples", str(path))), features="law")
    for option, values in (("--concept", 1), ("--no-similarity", 0)):
        at = arguments.index(option)
        del arguments[at : at + 1 + values]
    assert run(arguments) == 0
    curve = curve_of(folder, 6)
    assert (curve["max_act"], curve["max_act_from"]) == (100, "labels")
    assert curve["concept"]["words"] == ["bridge", "arch"]
    assert (curve["concept"]["words_from"], curve["concept"]["common_words_left_out"]) == ("labels", ["number*"])
    assert (curve["concept"]["texts"], curve["concept"]["texts_from"]) == (6, "labels")
    gains = [point["greedy"]["similarity_gain"][0] for point in curve["curve"]]
    assert gains[0] == 0
    assert 0 < gains[1] < gains[2] < gains[3]  # a sentence encoder finds bridges more like long bridges than nothing
    assert (
        curve["unsteered"]["greedy"]["similar"][0] == 0.125
    )  # the most similar of eight is above their 95th percentile
    assert curve["curve"][3]["greedy"]["similar"][0] == 1
    book = yaml.safe_load((folder / "features.yaml").read_text())
    assert (book["features"][2]["max_act"], book["features"][2]["best"]) == (100, 0.25)


def test_words_of_labels_that_every_answer_holds_cannot_judge(
    server: Stub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saeclamp_server.calibration.concept.label_words", lambda *_: ("number",))
    write_labels(folder, folder)
    arguments = [word for word in words(server, folder, features="law") if word not in ("--concept", "bridge")]
    with pytest.raises(CalibrationError, match=r"labels give feature law \(number\) stand in unsteered answers too"):
        run(arguments)  # without similarity there is nothing to judge by
    arguments.remove("--no-similarity")
    assert run(arguments) == 0
    assert curve_of(folder, 6)["judged_by"] == "similarity"
    with pytest.raises(CalibrationError, match="or judge by similarity"):
        run([*arguments, "--judge", "words"])


def test_labels_of_other_weights_are_refused(server: Stub, folder: Path, tmp_path: Path) -> None:
    other = make_sae(tmp_path / "other", layer=2, d_in=16, d_sae=24, seed=1)
    with pytest.raises(UserError, match="are of other weights"):
        run(words(server, folder, "--examples", str(write_labels(tmp_path, other))))
