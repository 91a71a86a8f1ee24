"""What commands tell whoever runs them, to the letter and on the stream it belongs on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.saes.loaders.layouts import goodfire
from tests.support import forked_command
from tests.support.calibration_stub import serving, words, write_sae
from tests.support.checkpoints import make_sae
from tests.support.local_hub import COMMIT, LocalHub

Command = Callable[..., subprocess.CompletedProcess[str]]

MATRYOSHKA = "gemma-2-9b-res-matryoshka-dc/blocks.3.hook_resid_post"
REPOSITORY = "chanind/gemma-2-9b-batch-topk-matryoshka-saes-w-32k-l0-60"
FILES = "blocks.3.hook_resid_post/cfg.json, blocks.3.hook_resid_post/sae_weights.safetensors"


@pytest.fixture
def saeclamp(tmp_path: Path) -> Command:
    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "HOME": str(tmp_path),
            "SAECLAMP_HOME": str(tmp_path / "home"),
            "SAECLAMP_CACHE": str(tmp_path / "cache"),
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        return forked_command.saeclamp(*arguments, env=environment | more, cwd=tmp_path)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 4}
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 2, "num_key_value_heads": 2}))
    return folder


def test_adding_from_the_hub_names_the_files_and_the_commit(saeclamp: Command, tmp_path: Path) -> None:
    make_sae(tmp_path / "hub" / REPOSITORY / "blocks.3.hook_resid_post", 3, 16)
    with LocalHub(tmp_path / "hub").running() as hub:
        done = saeclamp("sae", "add", MATRYOSHKA, "--name", "mine", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    assert done.stdout == f"mine: 64 features at resid_post 3, kept in {tmp_path / 'home/saes/mine'}\n"
    assert done.stderr == (
        f"saeclamp: fetching {FILES} from {REPOSITORY} at commit {COMMIT}\nsaeclamp: serve it with --sae mine\n"
    )


def test_adding_a_pickle_offline_warns_in_lines_like_the_others(saeclamp: Command, tmp_path: Path) -> None:
    repository = "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"
    goodfire.write(tmp_path / "hub" / repository, layer=19)
    file = f"{repository.partition('/')[2]}.pth"
    fetched = f"saeclamp: fetching {file} from {repository} at commit {COMMIT}\n"
    converted = f"saeclamp: converting {file} in a sandbox\n"
    with LocalHub(tmp_path / "hub").running() as hub:
        done = saeclamp("sae", "add", f"hf://{repository}", "--name", "one", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    assert done.stderr == f"{fetched}{converted}saeclamp: serve it with --sae one\n"
    branch = tmp_path / "hf" / "hub" / f"models--{repository.replace('/', '--')}" / "refs" / "main"
    branch.parent.mkdir()
    branch.write_text(COMMIT)
    done = saeclamp("sae", "add", f"hf://{repository}", "--name", "two")
    forbidden = f"saeclamp: HF_HUB_OFFLINE forbids the network; using the commit in the local cache, {COMMIT}.\n"
    assert done.stderr == f"{forbidden}{fetched}{converted}saeclamp: serve it with --sae two\n"


def test_a_command_that_only_looks_an_sae_up_says_nothing_of_its_download(saeclamp: Command, tmp_path: Path) -> None:
    make_sae(tmp_path / "hub" / REPOSITORY / "blocks.3.hook_resid_post", 3, 16)
    with LocalHub(tmp_path / "hub").running() as hub:
        at_commit = f"hf://{REPOSITORY}@{COMMIT}/blocks.3.hook_resid_post"
        done = saeclamp("sae", "info", at_commit, "--json", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
        assert (json.loads(done.stdout)["d_sae"], done.stderr) == (64, "")
        arguments = ("sae", "verify", MATRYOSHKA, "--model", "nowhere/no-such-model")
        done = saeclamp(*arguments, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    assert MATRYOSHKA.replace("/", "--") in os.listdir(tmp_path / "home" / "saes"), "it was downloaded"
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert done.stderr.startswith("saeclamp: The model 'nowhere/no-such-model' cannot be loaded: ")


def test_a_calibration_prints_its_points_on_stderr(saeclamp: Command, tmp_path: Path) -> None:
    folder, out = write_sae(tmp_path), tmp_path / "red\x1b[31m"
    with serving(folder) as server:
        arguments = words(server, folder, "--strengths", "0.45", "--json", "--out", str(out), features="7")
        (tmp_path / "prompts.txt").write_text("0\n1\n2\n")
        done = saeclamp(*arguments, "--max-act", "100")
    assert (done.returncode, json.loads(done.stdout)["path"]) == (0, str(out))
    escaped = f"{tmp_path}/red\\x1b[31m"
    assert done.stderr == (
        "saeclamp: with 1 strengths, fewer than 5 prompts are too few to tell whether a feature steers; there are 3. The "
        "curve is measured all the same.\n"
        "saeclamp: waiting for the server's first token ...\n"
        "saeclamp: [1/2] unsteered answers\n"
        "saeclamp: [2/2] 7 at 0.45: greedy: hit 1.00, similar -, perplexity 1.22 x, distinct-2 1.00 x\n"
        f"saeclamp: curves are in {escaped}/calibration.json, green zones in {escaped}/features.yaml.\n"
        "saeclamp: features without a name are not in the feature book; --features 7=NAME names them.\n"
    )


def lines_of(server: subprocess.CompletedProcess[str]) -> list[str]:
    """What a server said on stderr, without the line for those who have waited for seconds."""
    return [line for line in server.stderr.splitlines() if "and what is to be loaded for it ..." not in line]


def test_a_server_names_its_saes_before_anything_long(saeclamp: Command, tmp_path: Path, model: Path) -> None:
    make_sae(tmp_path / "mine", layer=1, d_in=32)
    done = saeclamp("serve", str(model), "--sae", str(tmp_path / "mine"), VLLM_USE_V2_MODEL_RUNNER="1")
    lines = lines_of(done)
    assert (done.returncode, done.stdout, len(lines)) == (1, "", 2)
    assert lines[0].startswith("saeclamp: SAE mine: 64 features at resid_post 1, sha256 ")
    assert lines[0].endswith("; none is named")
    assert lines[1] == "saeclamp: VLLM_USE_V2_MODEL_RUNNER=1: on CPUs vLLM's V1 model runner is steered; unset it."


def test_a_server_says_what_it_fetches(saeclamp: Command, tmp_path: Path, model: Path) -> None:
    make_sae(tmp_path / "hub" / REPOSITORY / "blocks.3.hook_resid_post", 3, 32)
    with LocalHub(tmp_path / "hub").running() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "VLLM_USE_V2_MODEL_RUNNER": "1"}
        done = saeclamp("serve", str(model), "--sae", MATRYOSHKA, **environment)
    assert done.stdout == ""
    assert lines_of(done)[0] == f"saeclamp: fetching {FILES} from {REPOSITORY} at commit {COMMIT}"
