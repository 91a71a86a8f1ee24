"""The commands that speak to a running server, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.serving import Server


def run(server: Server, *words: str, said: str | None = None, status: int = 0) -> str:
    command = [sys.executable, "-m", "saeclamp_server", *words, "--url", server.url]
    done = subprocess.run(command, input=said, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr


def rows(table: str) -> list[list[str]]:
    return [line.split("\t") for line in table.splitlines() if "\t" in line]


def test_features_are_searched_shown_and_inspected(server: Server) -> None:
    header, *found = rows(run(server, "features", "search", "golden gate bridge", "--sae", "bundled", "--limit", "3"))
    assert header[:3] == ["feature", "name", "label"]
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
    table = run(server, "features", "contrast", str(tmp_path / "one"), str(tmp_path / "other"), "--limit", "2")
    assert len(rows(table)) == 3
    assert "too few to tell" in table
    said = run(server, "features", "contrast", str(tmp_path / "none"), str(tmp_path / "other"), status=1)
    assert "cannot be read" in said


def test_a_token_is_attributed(server: Server) -> None:
    table = run(
        server, "features", "attribute", "The most famous sight of San Francisco is the Golden", "--target", " Gate"
    )
    assert table.startswith("' Gate': logprob")
    assert "Causal for this context" in table


def test_variants_are_created_listed_exported_and_deleted(server: Server, tmp_path: Path) -> None:
    run(server, "variants", "create", "tired", "--clamp", "bundled/sea=1.25", "--add", "bundled/54=-30act")
    shown = dict(rows(run(server, "variants", "show", "tired")))
    moves = json.loads(shown["steering"])["interventions"]
    assert [(move["op"], move["value"], move["unit"]) for move in moves] == [
        ("clamp", 1.25, "max_act"),
        ("add", -30.0, "act"),
    ]
    assert f"{server.model}:tired" in [row[0] for row in rows(run(server, "variants", "list"))]
    file = tmp_path / "export.json"
    file.write_text(run(server, "variants", "export"))
    assert "is deleted, with 1 version." in run(server, "variants", "delete", "tired")
    assert "There is no variant 'tired'" in run(server, "variants", "show", "tired", status=1)
    assert run(server, "variants", "import", str(file)) == "1 new, 0 known.\n"
    run(server, "variants", "delete", "tired")


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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("features", "show", "bundled/golden-gat"), "Did you mean 'golden-gate'?"),
        (("features", "show", "bundled"), "<sae>/<index>"),
        (("features", "search", "x", "--limit", "1000"), "limit"),
        (("variants", "create", "x"), "Say how it steers"),
        (("variants", "create", "x", "--clamp", "bundled/sea"), "FEATURE=VALUE"),
        (("variants", "create", "golden-gate", "--clamp", "bundled/sea=1"), "read-only"),
        (("chat",), "Say how it is to be steered"),
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
