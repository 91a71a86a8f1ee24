"""What the demo prints, short of a server."""

from __future__ import annotations

import socket

import pytest

from saeclamp.types import Receipt
from saeclamp_server.cli.demo import format_measurement, main, side_by_side

RECEIPT = {
    "applied": True,
    "spec": "sha256:0",
    "model": "tiny",
    "sae": {"bundled": "sha256:1"},
    "interventions": [
        {
            "feature": "bundled/golden-gate",
            "sae": "bundled",
            "index": 914,
            "layer": 23,
            "op": "clamp",
            "value": 0.74,
            "unit": "max_act",
            "value_act": 170.2,
            "tokens": {"prompt": 23, "generated": 60},
            "act_before": {"mean": 0.4, "max": 3.1},
            "dose": {"mean": 0.31, "max": 0.52},
        }
    ],
}


def test_two_texts_are_wrapped_into_columns_of_equal_width() -> None:
    assert side_by_side("one two three four five six", "seven eight nine ten", 43) == (
        "one two three four   | seven eight nine ten\n"
        "five six             |"
    )  # fmt: skip


def test_line_breaks_of_a_text_are_kept_and_empty_lines_too() -> None:
    assert side_by_side("a\n\nb", "c", 43) == (
        "a                    | c\n"
        "                     |\n"
        "b                    |"
    )  # fmt: skip


@pytest.mark.parametrize("width", [43, 80, 81, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    text = "a bridge " * 60 + "x" * 500
    assert max(map(len, side_by_side(text, text, width).splitlines())) <= width


def test_a_very_narrow_terminal_still_gets_readable_columns() -> None:
    assert side_by_side("left", "right", 10) == "left                 | right"


def test_a_receipt_becomes_one_line() -> None:
    assert format_measurement(Receipt.model_validate(RECEIPT)) == (
        "(steered 23 prompt and 60 generated tokens; activation before: mean 0.4, max 3.1, clamped to 170.2; "
        "dose: mean 0.31, max 0.52 of the residual norm)"
    )


def test_an_answer_without_a_receipt_is_called_unsteered() -> None:
    assert format_measurement(None) == "(not steered)"


def test_without_a_server_the_demo_says_so_in_one_sentence_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refuses, and nobody else gets the port
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert main(["--url", url]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"No server answers at {url}; start one with `make serve`.")
    assert printed.count("\n") == 1


def test_a_malformed_feature_is_refused_before_anything_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--feature", "golden-gate"]) == 1
    assert capsys.readouterr().err.startswith("'golden-gate' clamped to 0.75 is not a clamp:")
