"""`saeclamp train`, as a user runs it: on a model's folder, killed and started again."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny_models import make
from tests.support.tiny_training import corpus, tokenizer

from saeclamp_saes import read_sae
from saeclamp_saes.errors import UserError
from saeclamp_saes.io.hashes import sha256_of
from saeclamp_server.cli.args import parse_args


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    make("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def arguments(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    what = ["--layer", "1", "--features", "24", "--k", "4", "--tokens", "3k", "--batch", "30", "--held-out", "0.2"]
    where = ["--model", str(model), "--data", str(data), "--out", str(out), "--device", "cpu"]
    return ["train", *where, *what, "--pool", "600", "--context", "40", *more]


def run(words: list[str]) -> int:
    parsed = parse_args(words)
    assert isinstance(parsed, argparse.Namespace)
    status: int = parsed.run(parsed)
    return status


def test_it_trains_and_says_what_came_of_it(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = corpus(tmp_path / "data"), tmp_path / "run"
    assert run(arguments(model, data, out, "--save-dtype", "bfloat16")) == 0
    said = capsys.readouterr()
    facts = dict(line.split("\t") for line in said.out.splitlines())
    assert facts["written"] == str(out / "sae")
    assert float(facts["active features a token (L0)"]) == pytest.approx(4.0, abs=0.2)
    assert said.err.endswith(f"saeclamp: serve it with: saeclamp serve {model} --sae {out.name}={out / 'sae'}\n")
    training = json.loads((out / "sae" / "cfg.json").read_text())["metadata"]["training"]
    assert training["model"] == {
        "name": "tiny-llama",
        "sha256": {"model.safetensors": sha256_of(model / "model.safetensors")},
    }
    sae = read_sae(out / "sae")
    assert (sae.d_in, sae.d_sae, str(sae.site), sae.model_name) == (16, 24, "resid_post 1", "tiny-llama")


def test_figures_come_as_json_too(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = corpus(tmp_path / "data"), tmp_path / "run"
    assert run(arguments(model, data, out, "--json", "--architecture", "topk")) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["path"] == str(out / "sae")
    assert first["l0"] == 4.0
    assert first["num_tokens"] >= 100
    assert run(arguments(model, data, out, "--json", "--architecture", "topk")) == 0  # done already
    assert json.loads(capsys.readouterr().out) == first


def test_killed_and_started_again_it_comes_to_the_same(model: Path, tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    more = ("--tokens", "60k", "--pool", "900")  # long enough to be killed in the middle
    words = arguments(model, data, tmp_path / "killed", *more)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "saeclamp_server", *words], env=environment, stderr=subprocess.PIPE
    )
    log = tmp_path / "killed" / "log.csv"
    deadline = time.monotonic() + 300
    while not (log.exists() and len(log.read_text().splitlines()) > 8):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "sae").exists()
    assert run(words) == 0
    assert run(arguments(model, data, tmp_path / "whole", *more)) == 0
    weights = [sha256_of(tmp_path / name / "sae" / "sae_weights.safetensors") for name in ("killed", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--layer", "3"], "There is no layer 3: the model has layers 0 to 2"),
        (["--k", "25"], "25 active features a token cannot be had of 24"),
        (["--data", "nowhere"], "There is no file or folder nowhere"),
        (["--tokens", "30"], "30 tokens make 1 steps of 30"),
        (["--model", "/no/such/folder"], "cannot be loaded"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(model: Path, tmp_path: Path, more: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(arguments(model, corpus(tmp_path / "data"), tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_tensorboard_without_its_package_is_refused(model: Path, tmp_path: Path) -> None:
    words = arguments(model, corpus(tmp_path / "data"), tmp_path / "run", "--tensorboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(UserError, match="pip install tensorboard"):
            run(words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words", [["--tokens", "5X"], ["--tokens", "0"], ["--lr", "-1"], ["--held-out", "1"], ["--layer", "-1"]]
)
def test_a_malformed_number_is_a_usage_error(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parse_args(arguments(tmp_path, tmp_path, tmp_path, *words))
    assert left.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_the_command_line_needs_no_torch_to_explain_itself() -> None:
    code = "import sys\nfrom saeclamp_server.cli.args import parse_args\n"
    code += "try: parse_args(['train', '--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "500k or 25M" in done.stdout
