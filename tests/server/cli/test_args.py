"""What does not fit is said in one sentence, with a status that is not zero, before any long work."""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from tests.support import forked_command
from tests.support.checkpoints import make_sae

from saeclamp_saes.cli.log_handler import ROOT_LOGGER, set_up_log
from saeclamp_saes.errors import UserError
from saeclamp_server.cli.args import parse_args
from saeclamp_server.launch import example_request, print_ready
from saeclamp_server.model_info import check_compatible
from saeclamp_server.startup import preflight
from saeclamp_server.startup.preflight import check_address, check_vllm, open_saes, read_model_info
from saeclamp_server.startup.server_log import ServerLog

BEFORE_LONG_WORK_S = 120
"""Importing torch and transformers on a busy machine; an engine would not have started by then."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 4}
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 2, "num_key_value_heads": 2}))
    return folder


def run(*arguments: str) -> tuple[int, str]:
    started = time.monotonic()
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    done = forked_command.saeclamp(*arguments, env=environment)
    assert time.monotonic() - started < BEFORE_LONG_WORK_S
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip()


def test_a_missing_model(tmp_path: Path) -> None:
    sae = make_sae(tmp_path / "sae", layer=1, d_in=32)
    status, said = run("serve", "nowhere/no-such-model", "--sae", str(sae))
    assert status == 1
    assert said.startswith("saeclamp: No model 'nowhere/no-such-model'")
    assert len(said.splitlines()) == 1


def test_a_missing_sae(model: Path) -> None:
    status, said = run("serve", str(model), "--sae", "nobody")
    assert (status, len(said.splitlines())) == (1, 1)
    assert said.startswith("saeclamp: No SAE 'nobody': it is neither a file or folder nor a bundled SAE (bundled)")


@pytest.mark.parametrize(
    ("url", "says"), [("mysql://host/database", "not in mysql"), ("sqlite:////proc/no/where", "cannot be made")]
)
def test_a_database_of_variants_that_cannot_be_used(model: Path, tmp_path: Path, url: str, says: str) -> None:
    sae = make_sae(tmp_path / "sae", layer=1, d_in=32)
    status, said = run("serve", str(model), "--sae", str(sae), "--variants", url)
    assert (status, len(said.splitlines())) == (1, 1)
    assert says in said
    assert "--variants URL" in said


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    sae = make_sae(tmp_path / "sae", layer=1, d_in=32)
    status, said = run("serve", str(tmp_path), "--sae", str(sae))
    assert (status, len(said.splitlines())) == (1, 1)
    assert "without a config.json" in said


def test_the_bundled_sae_on_another_model(model: Path) -> None:
    status, said = run("serve", str(model), "--sae", "bundled")
    assert (status, len(said.splitlines())) == (1, 1)
    assert "smollm2-135m-instruct" in said


def test_no_sae_at_all(model: Path) -> None:
    status, said = run("serve", str(model))
    assert status == 2
    assert "give at least one --sae" in said


def test_help_needs_no_engine() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "saeclamp_server", "serve", "--help"], capture_output=True, text=True, check=True
    )
    assert "--sae NAME_OR_FOLDER" in done.stdout


def test_other_flags_are_vllms() -> None:
    options = parse_args(
        ["serve", "m", "--sae", "a", "--max-model-len", "2048", "--enforce-eager", "--sae=b", "--port", "9"]
    )
    assert (options.model, options.saes) == ("m", ("a", "b"))
    assert options.vllm_argv == ("--max-model-len", "2048", "--enforce-eager", "--port", "9")
    assert parse_args(["serve", "smollm2-135m-instruct"]).saes == ("bundled",)


def test_an_sae_of_another_width(model: Path, tmp_path: Path) -> None:
    sae = make_sae(tmp_path / "sae", layer=1, d_in=48)
    with pytest.raises(UserError, match=r"reads vectors of width 48 at resid_post 1; .* has width 32"):
        check_compatible(open_saes([str(sae)]), read_model_info(str(model)))


def test_an_sae_at_a_layer_that_is_not_there(model: Path, tmp_path: Path) -> None:
    sae = make_sae(tmp_path / "sae", layer=4, d_in=32)
    with pytest.raises(UserError, match=r"sits at resid_post 4; .* has layers 0 to 3"):
        check_compatible(open_saes([str(sae)]), read_model_info(str(model)))


def test_two_saes_of_one_name(tmp_path: Path) -> None:
    first, second = (make_sae(tmp_path / parent / "sae", layer=1, d_in=32) for parent in ("one", "two"))
    with pytest.raises(UserError, match="Two SAEs are named 'sae'"):
        open_saes([str(first), str(second)])
    assert list(open_saes([str(first), f"other={second}"])) == ["sae", "other"]


def test_an_architecture_whose_stream_we_do_not_know(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["OPTForCausalLM"], "model_type": "opt"}))
    with pytest.raises(UserError, match=r"is a OPTForCausalLM, which cannot be steered yet; supported: Llama"):
        read_model_info(str(model))


@pytest.mark.parametrize("found", ["0.32.0", "0.32.5", "0.33.0", "0.33.1+cpu"])
def test_versions_of_vllm_that_were_tried_are_served(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(preflight, "version", lambda distribution: found)
    assert check_vllm() == found


@pytest.mark.parametrize("found", ["0.31.9", "0.34.0", "0.320.1", "1.0"])
def test_one_that_nobody_tried_is_refused_though_nothing_in_it_has_moved(
    monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    monkeypatch.setattr(preflight, "version", lambda distribution: found)
    with pytest.raises(UserError) as refused:
        check_vllm()
    assert str(refused.value) == (
        f"vLLM {found} is installed; saeclamp works with 0.32 and 0.33. All that it needs of vLLM is there, but nobody has "
        "tried this version."
    )


@pytest.mark.parametrize(
    "spelling", [["--port", "{}"], ["--port={}"], ["--host", "127.0.0.1", "--port", "{}", "--enforce-eager"]]
)
def test_a_port_that_is_taken_is_refused_before_vllm_is_imported(spelling: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        argv = [part.format(taken.getsockname()[1]) for part in spelling]
        with pytest.raises(UserError, match="Address already in use; choose another --port"):
            check_address(argv)
    check_address(argv)


def test_a_port_of_metrics_that_is_taken_or_the_server_s_own_is_refused_as_early() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--metrics-port: {port} cannot be listened on: Address already in use"):
            check_address(["--port", "0"], port)
    check_address(["--port", "0"], port)
    with pytest.raises(UserError, match=f"--metrics-port: {port} is the server's own --port"):
        check_address(["--port", str(port)], port)


def test_a_host_that_is_not_this_machine_is_refused_as_such() -> None:
    with pytest.raises(UserError, match=r"Cannot listen on 192\.0\.2\.1:0?.*; choose another --host"):
        check_address(["--host", "192.0.2.1"])
    with pytest.raises(UserError, match="choose another --host"):
        check_address(["--host", "no.such.host.invalid"])


@pytest.mark.parametrize(
    "argv",
    [
        ["--port", "none"],
        ["--port"],
        ["--port", "0"],
        ["--uds", "x"],
        ["--uds", "x", "--port", "99999"],
        ["--config", "y"],
    ],
)
def test_an_address_that_vllm_must_judge_is_left_to_it(argv: list[str]) -> None:
    check_address(argv)


@pytest.mark.parametrize("argv", [["--port", "99999999"], ["--port=-1"], ["--port", "-1"], ["--port", "65536"]])
def test_a_port_that_cannot_be_is_refused_with_its_value_and_the_range(argv: list[str]) -> None:
    value = argv[-1].removeprefix("--port=")
    with pytest.raises(UserError, match=f"--port {value} is no port: it is a number from 1 to 65535, or 0"):
        check_address(argv)


def test_a_model_without_a_name_is_not_the_current_folder() -> None:
    with pytest.raises(UserError, match="The model's name is empty"):
        read_model_info("")


def test_weights_with_nan_are_refused_before_the_engine_starts(tmp_path: Path) -> None:
    sae = make_sae(tmp_path / "sae", layer=1, d_in=32)
    tensors = load_file(sae / "sae_weights.safetensors")
    tensors["W_dec"][3, 4] = float("nan")
    save_file(tensors, sae / "sae_weights.safetensors")
    with pytest.raises(UserError, match="W_dec holds NaN or infinity"):
        open_saes([str(sae)])


def test_the_example_request_is_safe_to_paste_whatever_names_hold(tmp_path: Path) -> None:
    hostile = "it's $(touch x) `y`"
    sae = next(iter(open_saes([f"mine={make_sae(tmp_path / 'sae', layer=1, d_in=32)}"]).values()))
    words = shlex.split(example_request("http://127.0.0.1:1", hostile, sae))
    assert words[0] == "curl"
    body = json.loads(words[-1])
    assert body["model"] == hostile
    assert body["steering"]["interventions"][0]["feature"] == "mine/0"


def test_the_example_request_has_a_place_for_the_key_of_a_server_that_wants_one(tmp_path: Path) -> None:
    sae = next(iter(open_saes([f"mine={make_sae(tmp_path / 'sae', layer=1, d_in=32)}"]).values()))
    assert "Authorization" not in example_request("http://127.0.0.1:1", "m", sae)
    printed = example_request("http://127.0.0.1:1", "m", sae, needs_key=True)
    assert ' -H "Authorization: Bearer $SAECLAMP_API_KEY" ' in printed
    # as the shell that it is pasted into reads it
    done = subprocess.run(
        ["/bin/sh", "-c", f'curl() {{ printf "%s\\n" "$@"; }}; {printed}'],
        env={"SAECLAMP_API_KEY": "se cret"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Authorization: Bearer se cret" in done.stdout.splitlines()


@pytest.mark.parametrize("key", [None, ["k"]])
def test_where_there_is_a_key_the_server_says_how_the_request_to_try_gets_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: list[str] | None
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    saes = open_saes([f"mine={make_sae(tmp_path / 'sae', layer=1, d_in=32)}"])
    args = Namespace(served_model_name=None, model="m", api_key=key)
    started = SimpleNamespace(server=SimpleNamespace(started=True))
    log = ServerLog()
    set_up_log(ROOT_LOGGER, log.handler)
    asyncio.run(print_ready(started, args, saes, "http://127.0.0.1:1", log))
    said = capfd.readouterr().err
    where = ", where SAECLAMP_API_KEY has the server's key (export SAECLAMP_API_KEY=...)" if key else ""
    assert said == f"saeclamp: ready on http://127.0.0.1:1. Try{where}:\n\n"


def test_sites_that_cannot_be_steered_are_refused(model: Path, tmp_path: Path) -> None:
    facts = read_model_info(str(model))
    late = make_sae(
        tmp_path / "late", layer=1, d_in=32, architecture="transcoder", hooks=("mlp.hook_in", "hook_attn_out")
    )
    with pytest.raises(UserError, match="reads mlp_in 1 and writes to attn_out 1, which comes before"):
        check_compatible(open_saes([str(late)]), facts)
    no_gain = make_sae(tmp_path / "no-gain", layer=1, d_in=32, hooks=("ln2.hook_normalized",))
    with pytest.raises(UserError, match="writes to mlp_in_no_gain 1, a vector that the model never holds"):
        check_compatible(open_saes([str(no_gain)]), facts)
    heads = make_sae(tmp_path / "heads", layer=1, d_in=32, hooks=("attn.hook_z",))
    with pytest.raises(UserError, match=r"reads vectors of width 32 at attn_z 1; .* has width 64"):
        check_compatible(open_saes([str(heads)]), replace(facts, z_width=64))


def test_sigterm_in_the_middle_of_a_task_ends_without_a_traceback() -> None:
    program = """
import argparse, asyncio, os, signal, sys
from saeclamp_server.__main__ import _run

async def work():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)
    finally:
        print("cleared away")

sys.exit(_run(argparse.Namespace(command="task", run=lambda options: asyncio.run(work()))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (143, "cleared away\n", "")
