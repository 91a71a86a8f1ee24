"""On a CPU the engine's cache is as large as we say, and as large as the user says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import make_model, make_sae
from tests.support.serving import Server, serve

from saeclamp_saes import SAEEntry
from saeclamp_server.startup.options import ServeOptions
from saeclamp_server.startup.preflight import open_saes, read_model_info
from saeclamp_server.startup.vllm_settings import parse_vllm_args

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs the size is left to vLLM")

BLOCK_BYTES = 2 * 4 * 1 * 32 * 4 * 128  # key and value, 4 layers, 1 head of 32 numbers in float32, 128 tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    return make_model(tmp_path_factory.mktemp("kv") / "model", model_folder)


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sae(tmp_path_factory.mktemp("kv") / "sae", layer=1, d_in=64)


@pytest.fixture
def saes(sae: Path) -> dict[str, SAEEntry]:
    return open_saes([str(sae)])


def cache_info(server: Server) -> dict[str, str]:
    """What the engine itself reports of its cache."""
    (labels,) = re.findall(r"^vllm:cache_config_info\{(.*)\} 1\.0$", server.http.get("/metrics").text, re.MULTILINE)
    return dict(re.findall(r'(\w+)="([^"]*)"', labels))


def test_the_engine_has_the_cache_that_was_announced(tmp_path: Path, model: Path, sae: Path) -> None:
    flags = ["--enforce-eager", "--dtype", "float32", "--max-model-len", "500", "--max-num-seqs", "6"]
    log = tmp_path / "log"
    with serve(log, str(model), "--sae", str(sae), *flags, unset="VLLM_CPU_KVCACHE_SPACE") as server:
        info = cache_info(server)
        assert server.complete("Hello", max_tokens=1)["choices"]
    # 4 blocks for each of 6 sequences, and the one that vLLM keeps
    assert info["num_gpu_blocks"] == "25"
    assert info["kv_cache_memory_bytes"] == str(25 * BLOCK_BYTES)
    (said,) = re.findall(r"saeclamp: (KV cache: .*)", log.read_text())
    assert said == (
        "KV cache: 3.1 MiB for 3,072 tokens (6.1 sequences of 500), as many as may run at once; "
        "--kv-cache-memory-bytes sets another size"
    )


@pytest.mark.parametrize(
    ("flags", "num_bytes", "utilization"),
    [
        pytest.param(["--kv-cache-memory-bytes", "1G"], 2**30, 0.92, id="bytes"),
        pytest.param(["--gpu-memory-utilization=0.5"], None, 0.5, id="share"),
        pytest.param(["--gpu_memory_utilization", "0.92"], None, 0.92, id="vllm's own default, said aloud"),
        pytest.param(["--num-gpu-blocks-override", "30"], None, 0.92, id="blocks"),
    ],
)
def test_what_the_user_says_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    saes: dict[str, SAEEntry],
    flags: Sequence[str],
    num_bytes: int | None,
    utilization: float,
    said: list[str],
) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    args = parse_vllm_args(ServeOptions(str(model), (), tuple(flags)), read_model_info(str(model)), saes)
    assert (args.kv_cache_memory_bytes, args.gpu_memory_utilization) == (num_bytes, utilization)
    assert said == []


def test_a_flag_in_a_configuration_file_is_the_users_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path, saes: dict[str, SAEEntry], said: list[str]
) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    config = tmp_path / "vllm.yaml"
    config.write_text("gpu-memory-utilization: 0.5\n")
    options = ServeOptions(str(model), (), ("--config", str(config)))
    args = parse_vllm_args(options, read_model_info(str(model)), saes)
    assert (args.kv_cache_memory_bytes, args.gpu_memory_utilization, said) == (None, 0.5, [])


def test_vllms_variable_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, model: Path, saes: dict[str, SAEEntry], said: list[str]
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    args = parse_vllm_args(ServeOptions(str(model), (), ()), read_model_info(str(model)), saes)
    assert (args.kv_cache_memory_bytes, said) == (None, [])
