"""`saeclamp measure` on the command line, with a tiny model and SAEs in files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.saes.loaders.layouts import saelens
from tests.support.tiny_evaluation import plain_texts
from tests.support.tiny_models import WIDTH, make
from tests.support.tiny_training import LAYER, corpus, tokenizer

from saeclamp_saes.cli import measure as command
from saeclamp_saes.errors import SAEError
from saeclamp_saes.evaluation.evaluate import SAVE_SECONDS, EvaluatedSAE, NamedSAE, evaluate
from saeclamp_saes.lm.harvest import ActivationReader

EVALUATE = "saeclamp_saes.evaluation.evaluate.evaluate"
"""What the command calls."""


def in_small_steps(
    saes: Sequence[NamedSAE], reader: ActivationReader, *rest: Any, save_seconds: float = SAVE_SECONDS
) -> EvaluatedSAE:
    """Measure with groups, and tokens of cross-entropies, as many times smaller as the texts are."""
    reader = replace(reader, group_tokens=1500)
    return evaluate(saes, reader, *rest, save_seconds=save_seconds, verified_tokens=400)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAECLAMP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(EVALUATE, in_small_steps)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    saelens.write(tmp_path / "sae", d_in=WIDTH, layer=LAYER)
    return tmp_path / "sae"


def run(*argv: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers(), str)
    args = parser.parse_args(["measure", *map(str, argv)])
    status: int = args.run(args)
    return status


def test_json_is_all_that_is_printed(
    sae: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, plots = corpus(tmp_path / "data", 60), tmp_path / "plots"
    assert run(sae, "--model", model, "--data", data, "--held-out", "0.3", "--plots", plots, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["data"]["held_out_share"] == 0.3
    assert told["data"]["files"] == [str(data / "a.jsonl.gz"), str(data / "b.jsonl")]
    assert told["plots"] == [str(plots / "density.png"), str(plots / "activations.png")]
    assert sorted(plots.iterdir()) == [plots / "activations.png", plots / "density.png"]
    (one,) = told["saes"]
    assert (one["name"], one["d_sae"], one["writes"]) == (str(sae), 40, [f"resid_post {LAYER}"])
    assert one["num_tokens"] == told["data"]["tokens"]
    assert 5 < told["data"]["documents"] < 40
    assert sum(one["densities"]["histogram"]["counts"]) + one["densities"]["num_never"] == 40
    assert set(one["verification"]["cross_entropy"]) > {"clean", "spliced", "zero", "mean"}


def test_one_sae_is_a_list_of_facts(sae: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(sae, "--model", model, "--tokens", "300") == 0
    facts = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert facts["SAE"] == f"{sae} at resid_post {LAYER}, 40 features"
    assert facts["tokens measured"] == "300 of the packaged sample (0 sinks left out)"
    assert facts["verdict"].startswith(
        "It is not used as it was trained: 22 features are active per token, more than the 16"
    )
    assert facts["note"].startswith("Only 300 tokens were measured")
    assert "cross-entropy on 300 of the tokens, clean" in facts


def test_several_saes_are_a_row_each(
    sae: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (text,) = plain_texts(tmp_path / "data", 30)
    assert run(sae, f"{sae}?site=resid_post.0", "--model", model, "--text", text) == 0
    columns, first, second, said = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert columns[:3] == ["SAE", "AT", "FEATURES"]
    assert first[:3] == [str(sae), f"resid_post {LAYER}", "40"]
    assert second[:3] == [f"{sae}?site=resid_post.0", "resid_post 0", "40"]
    assert len(columns) == len(first) == len(second)
    assert said[0].startswith("Measured on 30 documents")


def test_after_ctrl_c_the_same_command_goes_on(
    sae: Path,
    model: Path,
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain_texts(tmp_path / "data", 80)
    argv = (sae, "--model", model, "--data", tmp_path / "data", "--json")
    assert run(*argv) == 0
    expected = capsys.readouterr().out
    starts: list[int] = []

    @contextmanager
    def interrupting() -> Iterator[Any]:
        starts.append(-1)

        def report(doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            if doing == "measuring":
                if starts[-1] < 0:
                    starts[-1] = done
                if len(starts) == 1 and list((home / "unfinished").glob("*.safetensors")):
                    raise KeyboardInterrupt

        yield report

    monkeypatch.setattr(command, "progress_bar", interrupting)
    monkeypatch.setattr(EVALUATE, partial(in_small_steps, save_seconds=0.0))
    assert run(*argv) == 130
    assert capsys.readouterr().err == "saeclamp: stopped; the same command goes on with it.\n"
    assert len(list((home / "unfinished").iterdir())) == 1
    assert run(*argv) == 0
    assert capsys.readouterr().out == expected
    assert starts[1] > starts[0] > 0
    assert list((home / "unfinished").iterdir()) == []


def test_sums_over_the_data_in_another_order_are_others(
    sae: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept while measuring is found again by all that it depends on, and the order of the data is of it."""
    states: list[Path] = []

    def instead(*args: Any) -> None:
        states.append(args[-1])
        raise KeyboardInterrupt

    monkeypatch.setattr(EVALUATE, instead)
    data = corpus(tmp_path / "data", 20)
    one, other = data / "a.jsonl.gz", data / "b.jsonl"
    for files in ([one, other], [other, one], [data]):
        assert run(sae, "--model", model, "--data", *files) == 130
    assert states[0] == states[2] != states[1]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        pytest.param(["missing", "--model", "m"], "No SAE 'missing'", id="no-such-sae"),
        pytest.param(["SAE", "--model", "/no/such"], "The model '/no/such' cannot be loaded", id="no-such-model"),
        pytest.param(["SAE", "--model", "m", "--data", "/no/data"], "no file or folder /no/data", id="no-such-data"),
        pytest.param(["SAE", "--model", "m", "--text", "/no/text"], "no file or folder /no/text", id="no-such-text"),
        pytest.param(["SAE", "--model", "m", "--held-out", "0.1"], "name them with --data", id="held-out-of-what"),
    ],
)
def test_what_is_not_there_is_a_sentence(argv: list[str], sentence: str, sae: Path) -> None:
    with pytest.raises(SAEError) as refused:
        run(*[str(sae) if word == "SAE" else word for word in argv])
    assert sentence in str(refused.value)


@pytest.mark.parametrize("argv", [["--tokens", "0"], ["--held-out", "2"], ["--text", "a", "--data", "b"]])
def test_numbers_that_are_none_are_usage_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        run("bundled", "--model", "m", *argv)
    assert refused.value.code == 2
