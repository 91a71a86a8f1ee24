"""`saeclamp calibrate` as a user runs it, against a server whose answers are known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.calibration_stub import BOOK, NUM_PROMPTS, PLAIN, Stub, curve_of, run, serving, words, write_sae
from tests.support.scripted_server import RECEIPT, chat_answer, reply


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sae(tmp_path)


@pytest.fixture
def server(folder: Path) -> Iterator[Stub]:
    with serving(folder) as running:
        yield running


def test_the_whole_curve_is_measured_and_kept(server: Stub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words(server, folder, "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    (feature,) = told["features"]
    assert told["path"] == str(folder)
    assert feature == {"index": 3, **curve_of(folder)}
    assert [point["strength"] for point in feature["curve"]] == [0.05, 0.15, 0.25, 0.9]
    assert [point["act"] for point in feature["curve"]] == [5, 15, 25, 90]
    # a quarter of the prompts is about a bridge from 10 on, half from 20 on; at 90 all are, and nothing else
    assert [point["greedy"]["hit"][0] for point in feature["curve"]] == [0, 0.25, 0.5, 1]
    # tokens: 5 of 1 nat a plain answer, 6 of 1.2 nats one about a bridge, 6 of 3 nats a broken one
    nats = [1, (15 + 7.2) / 21, (10 + 14.4) / 22, 3]
    assert [point["greedy"]["perplexity"] for point in feature["curve"]] == pytest.approx(
        list(map(math.exp, nats)), abs=1e-4
    )
    assert feature["curve"][3]["greedy"]["perplexity_ratio"][0] == pytest.approx(math.e**2, abs=1e-4)
    assert [point["greedy"]["distinct_2"] for point in feature["curve"]] == [1, 1, 1, 0.2]
    assert [point["greedy"]["repetition"] for point in feature["curve"]] == pytest.approx([0, 0, 0, 5 / 6], abs=1e-4)
    assert feature["curve"][0]["greedy"]["dose"] == 0.31  # of the stub's receipt
    assert feature["green_zone"] == [0.15, 0.25]  # half of the best hit, in fluent answers
    assert feature["best"] == 0.25


def test_the_green_zone_goes_into_the_feature_book(server: Stub, folder: Path) -> None:
    assert run(words(server, folder, "--strengths", "0.05,0.15,0.25,0.35,0.45,0.9")) == 0
    curve = curve_of(folder)
    assert [point["greedy"]["hit"][0] for point in curve["curve"]] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [point["green"] for point in curve["curve"]] == [False, False, True, True, True, False]
    assert (curve["green_zone"], curve["best"], curve["judged_by"]) == ([0.25, 0.45], 0.45, "words")
    assert curve["sample"] == {
        "strength": 0.45,
        "prompt": "0",
        "unsteered": "number 0 is nothing much",
        "steered": "number 0 is a fine bridge",
    }
    book = yaml.safe_load((folder / "features.yaml").read_text())
    assert book["notes"] == "Mine."
    assert book["features"][0] == {
        "index": 3,
        "name": "bridge",
        "description": "Bridges.",
        "max_act": 100,
        "clamp": [0.25, 0.45],
        "best": 0.45,
        "evidence": {
            "hit": 1.0,
            "perplexity_ratio": round(math.exp(0.2), 3),
            "distinct_2_ratio": 1.0,
            "at": 0.45,
            "judged_by": "words",
            "prompts": 8,
            "date": curve["date"],
        },
    }
    assert book["features"][1:] == yaml.safe_load(BOOK)["features"][1:]
    assert sorted(file.name for file in folder.iterdir()) == [
        ".calibration.lock",
        "calibration.json", "cfg.json", "features.yaml", "sae_weights.safetensors",
    ]  # fmt: skip


def test_a_feature_that_does_not_steer_loses_its_zone(server: Stub, folder: Path, capsys: Any) -> None:
    assert run(words(server, folder, "--concept", "soup", features="food")) == 0
    assert "rises by 0% at most, which is below 20%" in capsys.readouterr().out
    entry = yaml.safe_load((folder / "features.yaml").read_text())["features"][1]
    assert (entry["clamp"], entry["best"]) == (None, None)
    assert entry["evidence"]["verdict"].startswith("It does not steer")
    assert entry["evidence"]["hit"] == 0


def test_what_was_measured_with_is_kept_with_the_curve(server: Stub, folder: Path) -> None:
    assert run(words(server, folder, "--tokens", "9")) == 0
    curve = curve_of(folder)
    assert curve["model"] == {"name": "tiny", "sha256": None}
    assert curve["sae"] == {"name": "mine", "sha256": server.sae_sha256}
    assert (curve["prompts"]["from"], curve["prompts"]["count"]) == ("prompts.txt", 8)
    assert curve["decodings"] == [{"name": "greedy", "temperature": 0, "repetition_penalty": 1.1, "seeds": [None]}]
    assert curve["concept"]["words_from"] == "--concept"
    assert (curve["server"], curve["max_tokens"]) == ({"vllm": "0.32.0", "flags": []}, 9)
    assert {asked.body["max_tokens"] for asked in server.answers() if "messages" in asked.body} == {9}
    sent = next(asked.body for asked in server.answers() if asked.act == 5)
    (clamp,) = sent["steering"]["interventions"]
    expected = {"op": "clamp", "feature": {"sae": "mine", "index": 3}, "value": 5.0, "unit": "act", "tokens": "all"}
    assert clamp == {**expected, "special_tokens": False}
    scored = next(asked.body for asked in server.asked if "prompt_logprobs" in asked.body)
    assert "steering" not in scored
    assert scored["prompt"][:3] == [5, 6, 7]


def test_sampled_answers_are_a_curve_of_their_own(server: Stub, folder: Path, capsys: Any) -> None:
    assert run(words(server, folder, "--sampled", "3")) == 0
    seeds = [(asked.body["temperature"], asked.body.get("seed")) for asked in server.asked if asked.act == 15]
    assert sorted(seeds, key=str) == sorted([(0, None), (0.7, 0), (0.7, 1), (0.7, 2)] * NUM_PROMPTS, key=str)
    point = curve_of(folder)["curve"][1]
    assert (point["greedy"]["num_answers"], point["sampled"]["num_answers"]) == (8, 24)
    rows = [
        line.split("\t")[:2] for line in capsys.readouterr().out.splitlines() if line.startswith(("greedy", "sampled"))
    ]
    assert rows == [[name, x] for name in ("greedy", "sampled") for x in ("0", "0.05", "0.15", "0.25", "0.9")]


def test_a_host_and_a_port_are_the_address_of_a_server(server: Stub, folder: Path) -> None:
    arguments = words(server, folder, "--strengths", "0.15")
    arguments[arguments.index("--url") + 1] = server.url.removeprefix("http://")
    assert run(arguments) == 0
    assert curve_of(folder)["server"]["vllm"] == "0.32.0"


def test_from_three_prompts_nothing_is_concluded_and_the_feature_book_stays_as_it_is(
    server: Stub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.parent / "prompts.txt").write_text("0\n1\n2\n")
    book = (folder / "features.yaml").read_text()
    assert run(words(server, folder, "--strengths", "0.15,0.25,0.35,0.45", features="food")) == 0
    curve = curve_of(folder, 5)
    assert (curve["green_zone"], curve["best"]) == (None, None)
    assert curve["verdict"] == (
        "Too few prompts to tell. There are 3 prompts, and with 4 strengths at least 7 are needed."
    )
    assert (folder / "features.yaml").read_text() == book
    said = capsys.readouterr().err
    assert "with 4 strengths, fewer than 7 prompts are too few to tell whether a feature steers; there are 3." in said


def test_the_table_marks_the_green_zone(server: Stub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words(server, folder, "--strengths", "0.15,0.35,0.45,0.9")) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert "verdict\tIt steers from 0.35 to 0.45 x max_act, best at 0.45." in lines
    assert "unsteered, greedy\tperplexity 2.72, distinct-2 1.00" in lines
    at = lines.index("  at 0.45\tnumber 0 is a fine bridge") + 1
    header, *rows = [line.split("\t") for line in lines[at:]]
    assert (header[:2], header[-1]) == (["x max", "hit"], "green")
    marks = [("0", ""), ("0.15", ""), ("0.35", "green"), ("0.45", "best"), ("0.9", "")]
    assert [(row[0], row[-1]) for row in rows] == marks
    assert rows[2][1].startswith("0.75 (")
    assert "[5/5] bridge at" in said.err
    assert said.err.count("saeclamp: [") == 5


def test_plain_prompts_are_continued_as_text(server: Stub, folder: Path) -> None:
    assert run(words(server, folder, "--plain")) == 0
    assert {asked.path for asked in server.asked} == {"/v1/completions"}
    assert [point["greedy"]["hit"][0] for point in curve_of(folder)["curve"]] == [0, 0.25, 0.5, 1]


def test_other_features_curves_are_kept(server: Stub, folder: Path) -> None:
    assert run(words(server, folder)) == 0
    first = curve_of(folder)
    assert run(words(server, folder, features="5")) == 0
    assert curve_of(folder) == first
    assert curve_of(folder, 5)["name"] == "food"
    assert [point["act"] for point in curve_of(folder, 5)["curve"]] == [2.5, 7.5, 12.5, 45]


def test_a_kept_curve_is_judged_again_without_asking(server: Stub, folder: Path) -> None:
    assert run(words(server, folder, "--strengths", "0.15,0.35,0.45,0.9")) == 0
    asked = len(server.asked)
    assert run(words(server, folder, "--strengths", "0.15,0.35,0.45,0.9", "--share-of-best", "0.9")) == 0
    assert len(server.asked) == asked
    assert curve_of(folder)["green_zone"] == [0.45, 0.45]
    assert yaml.safe_load((folder / "features.yaml").read_text())["features"][0]["clamp"] == [0.45, 0.45]
    assert curve_of(folder)["sample"]["strength"] == 0.45


def test_strengths_are_added_to_a_curve_that_was_measured_alike(server: Stub, folder: Path) -> None:
    assert run(words(server, folder)) == 0
    server.asked.clear()
    assert run(words(server, folder, "--strengths", "0.15,0.35")) == 0
    assert sorted(server.acts()) == [0] * NUM_PROMPTS + [35] * NUM_PROMPTS
    assert [point["strength"] for point in curve_of(folder)["curve"]] == [0.05, 0.15, 0.25, 0.35, 0.9]
    server.asked.clear()
    assert run(words(server, folder, "--strengths", "0.15", "--tokens", "7")) == 0  # measured otherwise: anew
    assert [point["strength"] for point in curve_of(folder)["curve"]] == [0.15]
    assert sorted(server.acts()) == [0] * NUM_PROMPTS + [15] * NUM_PROMPTS


@pytest.mark.parametrize(
    ("max_act", "strengths", "acts"),
    [
        ("1e-9", "0.5,1", [5e-10, 1e-9]),
        ("100", "1e-9,0.15", [1e-7, 15]),
        ("123.456789", "0.7", [86.4197523]),
        ("3", "0.1", [0.3]),
    ],
)
def test_a_clamp_is_never_rounded_to_nothing(
    server: Stub, folder: Path, max_act: str, strengths: str, acts: list[float]
) -> None:
    arguments = words(server, folder, "--max-act", max_act, "--strengths", strengths)
    assert run(arguments) == 0
    assert [point["act"] for point in curve_of(folder)["curve"]] == acts
    assert sorted(set(server.acts())) == [0, *acts]


def test_strengths_with_the_same_clamp_are_one(server: Stub, folder: Path) -> None:
    assert run(words(server, folder, "--strengths", "0.15,0.15000000000001,0.45")) == 0
    assert sorted(server.acts()) == [0] * NUM_PROMPTS + [15] * NUM_PROMPTS + [45] * NUM_PROMPTS
    assert [point["strength"] for point in curve_of(folder)["curve"]] == [0.15, 0.45]
    server.asked.clear()
    assert run(words(server, folder, "--strengths", "0.15000000000001,0.45")) == 0
    assert server.asked == []


def test_a_point_that_was_rounded_to_nothing_is_measured_again(server: Stub, folder: Path) -> None:
    assert run(words(server, folder, "--strengths", "0.15,0.45")) == 0
    kept = json.loads((folder / "calibration.json").read_text())
    kept["features"]["3"]["curve"][0]["act"] = 0.0
    (folder / "calibration.json").write_text(json.dumps(kept))
    server.asked.clear()
    assert run(words(server, folder, "--strengths", "0.15,0.45")) == 0
    assert set(server.acts()) == {0, 15}
    assert [point["act"] for point in curve_of(folder)["curve"]] == [15, 45]


def test_what_a_terminal_would_obey_is_printed_as_an_escape(server: Stub, folder: Path, capsys: Any) -> None:
    """In a prompt and in answers, also where no terminal is."""
    answer = {**chat_answer("a \x1b]0;mine\x07bridge\x9b31m"), "prompt_token_ids": [5]}
    answer["choices"][0]["token_ids"] = [PLAIN]
    receipt = {**RECEIPT, "sae": {"mine": f"sha256:{server.sae_sha256}"}}
    server.fault = lambda asked: (
        reply(answer | ({"steering": receipt} if asked.act else {})) if "messages" in asked.body else None
    )
    (folder.parent / "prompts.txt").write_text("what\x1b[31m is\x00 it?\n")
    assert run(words(server, folder)) == 0
    said = capsys.readouterr()
    assert "for example\twhat\\x1b[31m is\\x00 it?\n" in said.out
    assert "  unsteered\ta \\x1b]0;mine\\x07bridge\\x9b31m\n" in said.out
    assert all(char.isprintable() or char in "\n\t" for char in said.out + said.err)


def test_results_may_go_elsewhere(server: Stub, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "some" / "where"
    assert run(words(server, folder, "--strengths", "0.15,0.45", "--out", str(out))) == 0
    assert (folder / "features.yaml").read_text() == BOOK
    assert not (folder / "calibration.json").exists()
    book = yaml.safe_load((out / "features.yaml").read_text())
    assert [item["name"] for item in book["features"]] == ["bridge", "food", "law"]
    assert book["features"][0]["best"] == 0.45


def test_a_feature_gets_a_scale_and_a_name_on_the_command_line(server: Stub, folder: Path, capsys: Any) -> None:
    assert run(words(server, folder, "--max-act", "100", features="7")) == 0
    assert (
        "features without a name are not in the feature book; --features 7=NAME names them" in capsys.readouterr().err
    )
    assert (folder / "features.yaml").read_text() == BOOK
    server.asked.clear()
    concepts = ("--concept", "arch=bridge", "--concept", "3=bridge")
    assert run(words(server, folder, "--max-act", "7=100", *concepts, features="7=arch,3")) == 0
    assert set(server.acts()) == {0, 5, 15, 25, 90}  # of feature 3; those of 7 are known
    entry = yaml.safe_load((folder / "features.yaml").read_text())["features"][3]
    assert (entry["index"], entry["name"], entry["max_act"]) == (7, "arch", 100)


def test_names_with_commas_are_given_alone(server: Stub, folder: Path) -> None:
    (folder / "features.yaml").write_text("features:\n- {index: 2, name: 'red,green', max_act: 100}\n")
    assert run(words(server, folder, features="red,green")) == 0
    assert curve_of(folder, 2)["name"] == "red,green"
