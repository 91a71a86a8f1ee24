"""`saeclamp train` and `saeclamp harvest` on the command line, with a tiny model in files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny_models import make
from tests.support.tiny_training import corpus, tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from saeclamp_saes.cli import harvest, label, measure, train
from saeclamp_saes.cli.arg_types import LARGEST_SEED, MOST
from saeclamp_saes.errors import SAEError

SMALL = ("--features", "24", "--k", "4", "--tokens", "2k", "--batch", "32", "--held-out", "0.2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows 32 positions, and none behind them."""
    folder = tmp_path_factory.mktemp("short")
    GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=32, n_embd=16, n_layer=2, n_head=2)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def parsed(*argv: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for command in (harvest, train, label, measure):
        command.register(commands, str)
    return parser.parse_args(list(map(str, argv)))


def run(*argv: str | Path) -> int:
    args = parsed(*argv)
    status: int = args.run(args)
    return status


def test_training_prints_json_and_says_what_was_not_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = corpus(tmp_path / "data"), tmp_path / "run"
    for index in range(6):
        (data / f"z{index}.json").write_text("{}")
    assert run("train", "--model", model, "--layer", "1", "--data", data, "--out", out, *SMALL, "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["path"] == str(out / "sae")
    said = printed.err.splitlines()[0]
    assert said.startswith(f"saeclamp: not read, because it is no data: {data / 'README.md'}, {data / 'z0.json'}, ")
    assert said.endswith("z3.json and 2 more.")


def test_a_context_is_at_most_what_the_model_takes(short: Path, tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    assert run("train", "--model", short, "--layer", "0", "--data", data, "--out", tmp_path / "run", *SMALL) == 0
    assert json.loads((tmp_path / "run" / "sae" / "cfg.json").read_text())["metadata"]["context_size"] == 32
    argv = ("--layers", "0", "--context", "999", "--tokens", "2k", "--held-out", "0.2")
    assert run("harvest", "--model", short, *argv, "--data", data, "--out", tmp_path / "store") == 0
    assert json.loads((tmp_path / "store" / "harvest.json").read_text())["context"] == 32


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--seed", "99999999999999999999", "is not a whole number from 0 to 4,294,967,295"),
        ("--seed", "-1", "is not a whole number from 0"),
        ("--seed", str(LARGEST_SEED + 1), "is not a whole number from 0"),
        ("--tokens", "9" * 400, "is too large a number"),
        ("--features", str(MOST + 2), "is too large a number"),
        ("--batch", "9999999999999B", "is too large a number"),
        ("--context", "1", "sequences of fewer than 16 are not read"),
    ],
)
def test_numbers_out_of_range_are_usage_errors(
    option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        parsed("train", "--model", "m", "--layer", "1", "--data", "d", "--out", "o", f"{option}={value}")
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["label", "measure"])
def test_a_context_that_leaves_nothing_is_a_usage_error(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(command, "sae", "--model", "m", "--context", "3")
    assert "sequences of fewer than 16 are not read" in capsys.readouterr().err


def test_the_largest_seed_is_taken(model: Path, tmp_path: Path) -> None:
    argv = ("--layer", "1", "--data", corpus(tmp_path / "data"), "--out", tmp_path / "run", *SMALL)
    assert run("train", "--model", model, *argv, "--seed", str(LARGEST_SEED)) == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--features", "100B"), "100,000,000,000 features of width 16"),
        (("--k", "24"), "would be all of them, which no threshold gives"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_harvested(
    model: Path, tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    argv: tuple[Any, ...] = ("--layer", "1", "--data", corpus(tmp_path / "data"), "--out", tmp_path / "run")
    with pytest.raises(SAEError, match=said):
        run("train", "--model", model, *argv, *SMALL, *more)
    assert not (tmp_path / "run").exists()
