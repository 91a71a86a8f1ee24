"""Which of vLLM's flags go with steering: each was judged, and what nobody has judged is refused."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from itertools import combinations
from pathlib import Path

import pytest
from vllm.utils.argparse_utils import FlexibleArgumentParser

from saeclamp_saes.errors import UserError
from saeclamp_server.startup import vllm_settings
from saeclamp_server.startup.tested_flags import ALLOWED, JUDGED, REFUSED, SOME_VALUES, check_tested_flags
from saeclamp_server.startup.vllm_settings import (
    STEER_OP,
    check_pipeline,
    leave_the_op_out_of_cuda_graphs,
    prepare_environment,
)
from saeclamp_server.vllm_compat import import_cli_args

PARSER = import_cli_args().make_arg_parser(FlexibleArgumentParser())
PLAIN = PARSER.parse_args(["model"])
TABLES = {"allowed": ALLOWED, "some values": set(SOME_VALUES), "refused": set(REFUSED), "judged": JUDGED}
SINCE_0_33 = {"reasoning_effort_map", "sleep_mode_backend", "watchdog_config", "monokernel"}
NGRAM = json.dumps({"method": "ngram", "num_speculative_tokens": 2})


def judge(*argv: str) -> None:
    check_tested_flags(PARSER.parse_args(["model", *argv]), PLAIN)


def test_every_flag_of_this_vllm_was_judged_and_no_other_but_those_of_a_newer_one() -> None:
    flags, judged = {action.dest for action in PARSER._actions}, set().union(*TABLES.values())
    assert flags <= judged
    assert judged - flags in (set(), SINCE_0_33)


@pytest.mark.parametrize(("one", "other"), [*combinations(TABLES, 2)])
def test_no_flag_was_judged_twice(one: str, other: str) -> None:
    assert TABLES[one] & TABLES[other] == set()


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--enforce-eager", "--max-model-len", "2048", "--dtype", "float32", "--port", "8001", "--host", "0.0.0.0"),
        ("--served-model-name", "tiny", "--api-key", "a", "b", "--max-num-seqs", "4", "--block-size", "16"),
        ("--max-num-batched-tokens", "64", "--num-gpu-blocks-override", "40", "--kv-cache-memory-bytes", "4G"),
        ("--kv-offloading-size", "1"),
        ("--kv-offloading-size", "1", "--kv-offloading-backend", "native"),
        ("--tensor-parallel-size", "2", "--data-parallel-size", "2", "--data-parallel-size-local", "2"),
        ("-tp", "2", "-pp", "2", "-O1", "--api-server-count", "1"),
        ("--speculative-config", NGRAM),
        ("--async-scheduling",),
        ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-prompt-tokens-details"),
        ("--compilation-config", '{"mode": 0}'),
        ("--kv-cache-dtype", "bfloat16"),
        ("--nnodes", "1"),
    ],
)
def test_what_was_tried_or_cannot_matter_is_allowed(argv: tuple[str, ...]) -> None:
    judge(*argv)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (
            ("--kv-offloading-backend", "lmcache"),
            "--kv-offloading-backend lmcache .* Use native.",
        ),
        (("--kv-events-config", '{"enable_kv_cache_events": true}'), "--kv-events-config is not .* Leave it out."),
        (("--kv-transfer-config", '{"kv_connector": "x", "kv_role": "kv_both"}'), "--kv-transfer-config is not"),
        (("--nnodes", "2"), "--nnodes is not supported with steering yet: all of a server must run on this machine"),
        (("--headless",), "--headless is not supported"),
        (("--worker-cls", "my.Worker"), "--worker-cls is not supported with steering yet: steering brings its own"),
        (("--api-server-count", "2"), "--api-server-count 2 is not"),
        (("--data-parallel-external-lb",), "--data-parallel-external-lb is not"),
        (("--data-parallel-size", "2", "--data-parallel-size-local", "1"), "--data-parallel-size-local: all"),
        (("--prefill-context-parallel-size", "2"), "--prefill-context-parallel-size is not"),
        (("--shutdown-timeout", "5"), "--shutdown-timeout is not .*: use --drain SECONDS"),
        (("--spec-method", "eagle"), "--spec-method is not .* the method ngram"),
        (("--speculative-config", '{"method": "suffix"}'), "only the method ngram"),
        (("--speculative-config", NGRAM, "-pp", "2"), "--speculative-config is not supported with -"),
        (("--enable-lora",), "--enable-lora is not .* merge one into the model"),
        (("--sse-keep-alive-interval", "5"), "--sse-keep-alive-interval is not"),
        (("--model", "other"), "--model is not .*: the model comes first"),
        (("--prefix-caching-hash-algo", "xxhash"), "Use sha256 or sha256_cbor."),
        (("--quantization", "fp8"), "--quantization is not"),
    ],
)
def test_what_nobody_tried_is_refused_by_name_with_what_to_do(argv: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        judge(*argv)


def test_a_file_of_flags_is_judged_like_the_flags(tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text("kv-offloading-backend: lmcache\nmax-model-len: 64\n")
    with pytest.raises(UserError, match="--kv-offloading-backend lmcache is not"):
        check_tested_flags(PARSER.parse_args(["serve", "model", "--config", str(file)][1:]), PLAIN)


def test_a_flag_of_another_version_is_refused_at_any_value_but_its_default() -> None:
    defaults = Namespace(**vars(PLAIN), telepathy=False)
    check_tested_flags(Namespace(**vars(PLAIN), telepathy=False), defaults)
    with pytest.raises(UserError, match=r"--telepathy is not .* this version of saeclamp does not know it"):
        check_tested_flags(Namespace(**vars(PLAIN), telepathy=True), defaults)


@pytest.mark.parametrize(
    ("is_for_cpus", "refused", "taken"), [(True, ("1", "true"), ("0", "")), (False, ("0", "false"), ("1", ""))]
)
def test_the_model_runner_that_is_not_steered_here_is_refused_and_not_replaced(
    monkeypatch: pytest.MonkeyPatch, is_for_cpus: bool, refused: tuple[str, ...], taken: tuple[str, ...]
) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    monkeypatch.setattr(vllm_settings, "is_for_cpus", lambda: is_for_cpus)
    for value in refused:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", value)
        with pytest.raises(UserError, match=f"VLLM_USE_V2_MODEL_RUNNER={value}: .*; unset it"):
            prepare_environment()
    for value in taken:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", value)
        prepare_environment()


def test_on_gpus_the_runner_is_left_to_vllm_and_on_cpus_it_is_v1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    for is_for_cpus, chosen in ((False, None), (True, "0")):
        monkeypatch.setattr(vllm_settings, "is_for_cpus", lambda answer=is_for_cpus: answer)
        monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
        prepare_environment()
        assert os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == chosen


@pytest.mark.parametrize(
    ("has_gpus", "flag", "says"),
    [
        (True, "--no-async-scheduling", "--no-async-scheduling is not supported with -.* on GPUs"),
        (False, "--async-scheduling", "V1 model runner cannot with --pipeline-parallel-size"),
    ],
)
def test_pipeline_stages_have_one_way_of_scheduling_on_each_machine(has_gpus: bool, flag: str, says: str) -> None:
    check_pipeline(PARSER.parse_args(["model", flag]), has_gpus)
    check_pipeline(PARSER.parse_args(["model", "-pp", "2"]), has_gpus)
    with pytest.raises(UserError, match=says):
        check_pipeline(PARSER.parse_args(["model", "-pp", "2", flag]), has_gpus)


def test_graphs_are_cut_for_topk_saes_and_a_mode_that_cannot_be_is_refused() -> None:
    args = PARSER.parse_args(["model"])
    leave_the_op_out_of_cuda_graphs(args)
    assert STEER_OP in args.compilation_config.splitting_ops
    assert args.compilation_config.cudagraph_mode.name == "PIECEWISE"
    eager = PARSER.parse_args(["model", "--enforce-eager"])
    leave_the_op_out_of_cuda_graphs(eager)
    assert not eager.compilation_config.splitting_ops
    full = PARSER.parse_args(["model", "--compilation-config", '{"cudagraph_mode": "FULL"}'])
    with pytest.raises(UserError, match="cudagraph_mode FULL is not supported"):
        leave_the_op_out_of_cuda_graphs(full)
