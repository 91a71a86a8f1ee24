"""Results are iterated over row by row, and become DataFrames."""

from __future__ import annotations

import builtins
import subprocess
import sys
from typing import Any

import pytest
from tests.support.scripted_server import RECEIPT

from saeclamp import FeatureHit, FeatureHits, MissingPackageError, Receipt, SaeclampError
from saeclamp.types import (
    ChoiceReadout,
    ComparedAnswer,
    Comparison,
    Label,
    Neighbour,
    Neighbourhood,
    Neighbourhoods,
    SuggestedFeature,
    Suggestion,
    TokenReadout,
)

SEA = FeatureHit(feature="b/1", sae="b", index=1, label=Label(text="the sea", source="input", score=0.5), max_act=2.0)
LAW = FeatureHit(feature="b/2", sae="b", index=2)
HITS = FeatureHits(data=(SEA, LAW), num_found=2)


def test_an_answer_iterates_over_its_rows_and_not_over_its_fields() -> None:
    assert [hit.feature for hit in HITS] == ["b/1", "b/2"]
    assert [item.op for item in Receipt.model_validate(RECEIPT)] == [item["op"] for item in RECEIPT["interventions"]]
    read = ChoiceReadout(tokens=[None, TokenReadout(position=3, token_id=7), None])
    assert [token.position for token in read] == [3]
    tried = Suggestion(
        wish="w",
        outcome="found",
        steering=None,
        num_tried=2,
        chosen=(SuggestedFeature(feature="b/1", found_by=()),),
        alternatives=(SuggestedFeature(feature="b/2", found_by=()),),
    )
    assert [one.feature for one in tried] == ["b/1", "b/2"]


def test_a_dataframe_has_a_line_a_row_and_a_column_for_each_field_within_one() -> None:
    frame = HITS.to_dataframe()
    assert [*frame["feature"]] == ["b/1", "b/2"]
    assert frame["label.text"][0] == "the sea"
    assert frame["label.text"].isna()[1]
    assert "label" not in frame.columns
    assert frame["max_act"][0] == 2.0
    assert [*FeatureHits(data=(), num_found=0).to_dataframe().columns] == []


def test_neighbours_and_compared_answers_say_whose_they_are() -> None:
    near = Neighbourhoods(data=(Neighbourhood(feature="b/1", neighbours=(Neighbour(feature="b/2", cosine=0.5),)),))
    assert near.to_dataframe()[["of", "feature", "cosine"]].values.tolist() == [["b/1", "b/2", 0.5]]
    answers = [(ComparedAnswer(seed=0, text=text, tokens=()),) for text in ("a", "b")]
    compared = Comparison(default=answers[0], steered=answers[1], receipts=())
    assert compared.to_dataframe()[["column", "text"]].values.tolist() == [["default", "a"], ["steered", "b"]]
    assert [answer.text for answer in compared] == ["a", "b"]


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def import_(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_)
    with pytest.raises(MissingPackageError, match="pip install pandas") as raised:
        HITS.to_dataframe()
    assert isinstance(raised.value, SaeclampError)
    assert isinstance(raised.value, ImportError)


def test_the_package_is_imported_without_warnings_and_without_pandas() -> None:
    code = "import sys, saeclamp, saeclamp.importing; sys.exit('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
