"""The commands that speak to a running server, as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support import forked_command
from tests.support.bundled import GOLDEN_GATE
from tests.support.serving import Server
from tests.support.typed_terminal import CTRL_C, typed

from saeclamp import Client


def run_with_warnings(server: Server, *words: str, said: str | None = None, status: int = 0) -> tuple[str, str]:
    done = forked_command.saeclamp(*words, "--url", server.url, env=os.environ, said=said or "")
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def run(server: Server, *words: str, said: str | None = None, status: int = 0) -> str:
    out, err = run_with_warnings(server, *words, said=said, status=status)
    return out if status == 0 else err


def rows(table: str) -> list[list[str]]:
    return [line.split("\t") for line in table.splitlines() if "\t" in line]


def test_features_are_searched_shown_and_inspected(server: Server) -> None:
    header, *found = rows(run(server, "features", "search", "golden gate bridge", "--sae", "bundled", "--limit", "3"))
    assert header[:3] == ["feature", "name", "about"]
    assert "golden-gate" in [row[1] for row in found]
    calibrated = rows(run(server, "features", "search", "--green-zone", "--limit", "2"))[1:]
    assert all(" to " in row[header.index("green zone")] for row in calibrated)
    shown = dict(rows(run(server, "features", "show", "bundled/sea"))[:2])
    assert shown["name"] == "sea"
    answer = json.loads(run(server, "features", "show", "bundled/sea", "--json"))
    assert answer["name"] == "sea"
    inspected = rows(run(server, "features", "inspect", "The Golden Gate Bridge", "--feature", "bundled/golden-gate"))
    assert inspected[0] == ["position", "token", "bundled/golden-gate"]
    assert float(inspected[-1][2]) > 10
    near = rows(run(server, "features", "neighbours", "bundled/sea", "--limit", "2"))
    assert len(near) == 3


def test_sets_of_texts_in_files_are_contrasted(server: Server, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("Le chat dort.\nIl pleut.\n\n")
    (tmp_path / "other").write_text("The cat sleeps.\nIt rains.\n")
    words = ("features", "contrast", str(tmp_path / "one"), str(tmp_path / "other"), "--limit", "2")
    table, warned = run_with_warnings(server, *words)
    assert len(rows(table)) == 3
    assert "too few to tell" in warned
    said = run(server, "features", "contrast", str(tmp_path / "none"), str(tmp_path / "other"), status=1)
    assert "cannot be read" in said


def test_a_token_is_attributed(server: Server) -> None:
    table = run(
        server, "features", "attribute", "The most famous sight of San Francisco is the Golden", "--target", " Gate"
    )
    assert table.startswith("' Gate': logprob")
    assert "Causal for this context" in table


@pytest.mark.parametrize("option", ["--target", "--against"])
def test_a_token_that_is_likelier_with_a_blank_before_it_is_doubted(server: Server, option: str) -> None:
    words = ("features", "attribute", "The most famous sight of San Francisco is the Golden", option)
    _, warned = run_with_warnings(server, *words, "Gate")
    assert warned.startswith(
        f"warning: {option[2:]}: 'Gate' was taken without a blank before it, and ' Gate' is likelier here (logprob -0.0"
    )
    assert len(warned.splitlines()) == 1
    assert run_with_warnings(server, *words, " Gate")[1] == ""
    assert "not one. Did you mean ' Bridge', which is one?" in run(server, *words, "Bridge", status=1)
    # where an answer begins, words have no blank before them
    assert run_with_warnings(server, "features", "attribute", "--user", "Say hello.", option, "Hello")[1] == ""


def test_no_row_of_a_table_of_features_is_without_a_description(server: Server, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("Le chat dort.\nIl pleut.\n\n")
    (tmp_path / "other").write_text("The cat sleeps.\nIt rains.\n")
    said = "It was raining in the mountains, and nobody had a coat."
    tables = [
        run(server, "features", "search", "rain and mountains", "--sae", "bundled", "--limit", "50"),
        run(server, "features", "inspect", said, "--limit", "50"),
        run(server, "features", "contrast", str(tmp_path / "one"), str(tmp_path / "other"), "--limit", "50"),
        run(server, "features", "attribute", "--user", said),
        run(server, "features", "neighbours", "bundled/100", "--limit", "50"),
    ]
    for table in tables:
        header, *found = [row for row in rows(table) if len(row) > 3]
        of_bundled = [row[header.index("about")] for row in found if row[0].startswith("bundled/")]
        assert len(of_bundled) >= 10
        assert all(len(about) > 3 for about in of_bundled), table


def test_a_steering_is_validated_and_compared_on_a_conversation(server: Server) -> None:
    table = run(server, "validate", "--clamp", "bundled/sea=1", "--user", "Hi")
    assert "bundled/sea\tsea\t\tresid_post 23\tclamp\t1 max_act" in table
    words = ("--user", "How can I sleep better?", "--clamp", "bundled/golden-gate=0.75", "--max-tokens", "16")
    header, *answers = rows(run(server, "compare", *words, "--prompted", "Talk about a bridge.", "--seeds", "0,1"))
    assert [(row[0], row[1]) for row in answers] == [
        (column, seed) for column in ("default", "steered", "prompted") for seed in ("0", "1")
    ]
    assert ["Golden Gate" in row[header.index("text")] for row in answers[:4]] == [False, False, True, True]


def test_warnings_stand_beside_what_is_piped(server: Server) -> None:
    words = ("chat", "--clamp", "bundled/sea=0.005", "--max-tokens", "8")
    answers, warned = run_with_warnings(server, *words, said="Hello\n")
    assert "0.005 x max_act is outside the zone that was found to work, 0.8 to 1.2." in warned
    assert "warning" not in answers


def test_ctrl_c_ends_an_answer_on_the_server_too(server: Server, tmp_path: Path) -> None:
    def num_running() -> float:
        lines = server.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running{"))

    def becomes(wanted: int) -> bool:
        deadline = time.monotonic() + 10
        while (num := num_running()) != wanted and time.monotonic() < deadline:
            time.sleep(0.1)
        return num == wanted

    words = (
        "chat",
        "--variant",
        "sea",
        "--clamp",
        "bundled/golden-gate=0.6",
        "--max-tokens",
        "1500",
        "--url",
        server.url,
    )
    with typed(*words, environment={"XDG_STATE_HOME": str(tmp_path)}) as terminal:
        terminal.shows("> ")
        terminal.enter("Tell me a very long story about a journey, with many chapters.")
        at = terminal.shows("──")
        terminal.shows("the", at)
        assert becomes(2)  # both columns
        terminal.type(CTRL_C)
        at = terminal.shows("Stopped.", at)
        assert becomes(0)
        terminal.shows("> ", at)
        terminal.enter("/quit")
        assert terminal.ends() == 0


def test_what_is_suggested_for_a_wish_is_saved_as_a_variant(server: Server) -> None:
    with Client(server.url) as client:
        while client.features.search("bridge").note:  # a fresh machine computes embeddings first
            time.sleep(1)
    words = ("features", "suggest", "mention the Golden Gate Bridge", "--candidates", "1", "--max-tokens", "8")
    steering, example, *_ = run(server, *words, "--save", "bridges").splitlines()
    (move,) = json.loads(steering)["interventions"]
    assert (move["feature"], move["op"], move["unit"]) == (f"bundled/{GOLDEN_GATE}", "clamp", "max_act")
    assert example.startswith("e.g. ")
    saved = json.loads(dict(rows(run(server, "variants", "show", "bridges")))["steering"])
    assert saved["interventions"] == [move]
    run(server, "variants", "delete", "bridges", "--yes")
    # it is said before anything is tried
    assert "cannot be replaced" in run(server, *words, "--save", "golden-gate", status=1)


def test_variants_are_created_listed_exported_and_deleted(server: Server, tmp_path: Path) -> None:
    words = ("variants", "create", "tired", "--clamp", "bundled/sea=1.25", "--add", "bundled/54=-30act")
    assert f"Saved: {server.model}:tired means {server.model}:tired@" in run_with_warnings(server, *words)[1]
    assert f" exists already, unchanged; {server.model}:tired means it." in run_with_warnings(server, *words)[1]
    shown = dict(rows(run(server, "variants", "show", "tired")))
    moves = json.loads(shown["steering"])["interventions"]
    assert [(move["op"], move["value"], move["unit"]) for move in moves] == [
        ("clamp", 1.25, "max_act"),
        ("add", -30.0, "act"),
    ]
    assert f"{server.model}:tired" in [row[0] for row in rows(run(server, "variants", "list"))]
    file = tmp_path / "export.json"
    file.write_text(run(server, "variants", "export"))
    assert "is deleted, with 1 version." in run(server, "variants", "delete", "tired", "--yes")
    assert "There is no variant 'tired'" in run(server, "variants", "show", "tired", status=1)
    assert run(server, "variants", "import", str(file)) == "1 new, 0 known.\n"
    run(server, "variants", "delete", "tired", "--yes")


@pytest.mark.parametrize("how", [("--variant", "golden-gate"), ("--clamp", "bundled/golden-gate=0.75")])
def test_chat_shows_columns_with_histories_of_their_own(server: Server, how: tuple[str, str]) -> None:
    said = "What should I cook for dinner tonight?\n/reset\nHow can I sleep better?\n/quit\nnever asked\n"
    answers = run(server, "chat", *how, "--prompted", "Answer in one word.", "--max-tokens", "24", said=said)
    lines = answers.splitlines()
    titles = [line.partition(": ")[0] for line in lines]
    steered = f"{server.model}:golden-gate" if how[0] == "--variant" else "steered"
    # a variant's name has a colon of its own, but no blank behind it
    assert titles == ["default", steered, "prompted"] * 2
    assert "Golden Gate" in lines[1]
    assert "Golden Gate" not in lines[0]


def test_a_chat_refuses_a_variant_and_a_clamp_of_one_feature_at_once(server: Server) -> None:
    words = ("chat", "--variant", "golden-gate", "--clamp", "bundled/golden-gate=0.5")
    refused = run(server, *words, said="Hello\nHello\n", status=1)
    assert refused.startswith(f"saeclamp: The variant {server.model}:golden-gate cannot be used beside clamp bundled/")
    assert len(refused.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("features", "show", "bundled/golden-gat"), "Did you mean 'golden-gate'?"),
        (("features", "show", "bundled"), "<sae>/<index>"),
        (("features", "search", "x", "--limit", "1000"), "limit"),
        (("variants", "create", "x"), "Say how it steers"),
        (("variants", "create", "x", "--clamp", "bundled/sea"), "FEATURE=VALUE"),
        (("variants", "create", "golden-gate", "--clamp", "bundled/sea=1"), "read-only"),
        (("compare", "Hi"), "Say how it is to be steered"),
        (("chat", "--variant", "golden-gat"), "Did you mean 'golden-gate'?"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(server: Server, words: tuple[str, ...], says: str) -> None:
    said = run(server, *words, status=1)
    assert says in said
    assert said.startswith("saeclamp: ")


def test_no_server_is_said_in_a_sentence() -> None:
    command = [sys.executable, "-m", "saeclamp_server", "features", "search", "x", "--url", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "No server answers at http://127.0.0.1:9" in done.stderr
