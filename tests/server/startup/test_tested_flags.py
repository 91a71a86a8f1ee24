"""Which of vLLM's flags go with steering: each was judged, and what nobody has judged is refused."""

from __future__ import annotations

import json
from argparse import Namespace
from itertools import combinations
from pathlib import Path

import pytest
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from saeclamp_saes.errors import UserError
from saeclamp_server.startup.tested_flags import ALLOWED, JUDGED, REFUSED, SOME_VALUES, check_tested_flags
from saeclamp_server.startup.vllm_settings import prepare_environment

PARSER = make_arg_parser(FlexibleArgumentParser())
PLAIN = PARSER.parse_args(["model"])
TABLES = {"allowed": ALLOWED, "some values": set(SOME_VALUES), "refused": set(REFUSED), "judged": JUDGED}
NGRAM = json.dumps({"method": "ngram", "num_speculative_tokens": 2})


def judge(*argv: str) -> None:
    check_tested_flags(PARSER.parse_args(["model", *argv]), PLAIN)


def test_every_flag_of_this_vllm_was_judged_and_no_other() -> None:
    assert {action.dest for action in PARSER._actions} == set().union(*TABLES.values())


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
        (("--speculative-config", NGRAM, "-pp", "2"), "vLLM verifies no drafts with --pipeline-parallel-size"),
        (("--async-scheduling", "-pp", "2"), "cannot with --pipeline-parallel-size"),
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


def test_the_model_runner_that_cannot_be_steered_is_refused_and_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    for value in ("1", "true"):
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", value)
        with pytest.raises(UserError, match=f"VLLM_USE_V2_MODEL_RUNNER={value}: .*; unset it"):
            prepare_environment()
    for value in ("0", ""):
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", value)
        prepare_environment()
