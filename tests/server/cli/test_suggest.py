"""`saeclamp features suggest` prints what was found, or that nothing was, and saves only the first."""

from __future__ import annotations

import pytest

from saeclamp import Client
from saeclamp.types import Suggestion
from saeclamp_server.cli.server_client import CommandError
from saeclamp_server.cli.suggest import check_name, print_suggestion, save

NOWHERE = "http://127.0.0.1:9"
NOTHING = Suggestion.model_validate(
    {
        "wish": "always zux the glex",
        "outcome": "nothing_found",
        "steering": None,
        "num_tried": 4,
        "note": "Nothing found: none of it gains.",
        "test": "10 questions",
        "trials": [
            {
                "features": ["s/1", "s/2"],
                "strengths": [0.7, 0.35],
                "gain": 0.0123,
                "p_baseline": 0.2,
                "p": 0.4,
                "perplexity": 1.5,
                "repetition": 0.1,
                "works": False,
                "reason": "Unsteered answers may come as near.",
            }
        ],
        "alternatives": [
            {"feature": "s/1", "description": 'active on " sea"', "found_by": ["search"], "reason": "No."}
        ],
    }
)


def test_nothing_found_is_printed_with_what_was_tried(capsys: pytest.CaptureFixture[str]) -> None:
    print_suggestion(NOTHING)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Nothing found: none of it gains."
    assert "0.7 x s/1 + 0.35 x s/2\t+0.012\t\t0.4\t1.5 x\tUnsteered answers may come as near." in lines
    assert 's/1\t\tactive on " sea"\tNo.' in lines
    assert lines[-1] == "Tested on 10 questions."


def test_nothing_found_is_not_saved() -> None:
    with Client(NOWHERE) as client, pytest.raises(CommandError, match="nothing is saved as glex"):
        save(client, "glex", NOTHING)


@pytest.mark.parametrize("name", ["two words", "a:b", "", "-x", "x" * 65])
def test_a_name_that_cannot_be_one_is_refused_before_anything_is_tried(name: str) -> None:
    with Client(NOWHERE) as client, pytest.raises(CommandError, match="No variant can be named"):
        check_name(client, name)
