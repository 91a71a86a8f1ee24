"""Servers of a fleet are alike in all that answers depend on, and measure by the lengths of the first."""

from __future__ import annotations

import asyncio
import math
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.databases import emptied
from tests.support.sae_entries import entry
from tests.support.variants import create, served
from vllm.engine.arg_utils import AsyncEngineArgs

from saeclamp import Add, Steering
from saeclamp_saes import Site
from saeclamp_saes.library.feature_book import FeatureNote
from saeclamp_server.cli.args import parse_args
from saeclamp_server.database import Database
from saeclamp_server.fleet import check_database, confirm_fleet, join_fleet, list_fleets
from saeclamp_server.model_info import ModelInfo, StartupError
from saeclamp_server.served_sae import ServedSAE
from saeclamp_server.site_norms import QuickCheckResult, SiteNorms, rounded
from saeclamp_server.startup import fingerprint
from saeclamp_server.startup.fingerprint import FILES, SETTINGS, server_fingerprint
from saeclamp_server.startup.options import ServeOptions
from saeclamp_server.startup.serve_plan import ServePlan
from saeclamp_server.startup.tested_flags import ALLOWED, SOME_VALUES
from saeclamp_server.steering import resolve
from saeclamp_server.variants import VariantRegistry, VariantStore
from saeclamp_server.vectors import VectorSite

OWN = {"the model": "m", "SAE big": "s"}
FIT = {"explained_variance": 2 / 3, "l0": 41.5, "num_tokens": 900, "problem": None}
MEASURED = {
    "big": QuickCheckResult(SiteNorms(math.pi * 10, [1 / 3, 0.0, 2.5e-3]), FIT),
    "vectors@resid_post 3": QuickCheckResult(SiteNorms(None, [], False), None),
}


@pytest.fixture
def databases(postgres: str) -> Iterator[tuple[Database, Database]]:
    """Two servers' connections to one database."""
    emptied(postgres)
    opened = Database(postgres), Database(postgres)
    yield opened
    for database in opened:
        database.close()


def scaled(factor: float) -> dict[str, QuickCheckResult]:
    def of(norms: SiteNorms, fit: Any) -> QuickCheckResult:
        stream = norms.median_resid_norm
        rows = [row * factor for row in norms.row_norms]
        changed = replace(norms, median_resid_norm=stream and stream * factor, row_norms=rows)
        return QuickCheckResult(changed, fit and fit | {"l0": fit["l0"] * factor})

    return {name: of(*result) for name, result in MEASURED.items()}


def other(**norms: Any) -> dict[str, QuickCheckResult]:
    """What another server measured of the SAE."""
    big = MEASURED["big"]
    return {**MEASURED, "big": big._replace(norms=replace(big.norms, **norms))}


def start(database: Database, name: str, own: Mapping[str, str], measured: dict[str, QuickCheckResult]) -> None:
    """Enter a fleet, and come to answer requests."""
    confirm_fleet(database, name, own, join_fleet(database, name, own, measured))


def test_the_first_founds_and_later_ones_measure_as_it_did(databases: tuple[Database, Database]) -> None:
    first, later = databases
    assert join_fleet(first, "f", OWN, MEASURED) == MEASURED
    for factor in (1.0, 1 + 2**-52, 0.9901, 1.0099):
        assert join_fleet(later, "f", OWN, scaled(factor)) == MEASURED
    assert join_fleet(later, "g", OWN, scaled(3.0)) == scaled(3.0)


@pytest.mark.parametrize(
    "measured",
    [
        scaled(1.011),
        scaled(0.98),
        other(median_resid_norm=None),
        other(row_norms=[1 / 3, 1e-6, 2.5e-3]),
        other(row_norms=[1 / 3, 0.0]),
        other(row_norms=[1 / 3, math.nan, 2.5e-3]),
    ],
)
def test_lengths_that_are_too_far_off_are_refused(
    databases: tuple[Database, Database], measured: dict[str, QuickCheckResult]
) -> None:
    start(databases[0], "f", OWN, MEASURED)
    with pytest.raises(
        StartupError, match=r"not like those of the fleet 'f'.* measured for big differ by more than 1%"
    ):
        join_fleet(databases[1], "f", OWN, measured)


def test_of_two_that_start_at_once_one_founds_and_the_other_joins(databases: tuple[Database, Database]) -> None:
    with ThreadPoolExecutor(2) as pool:
        for number in range(30):
            own = [scaled(1.0), scaled(1.001)]
            found = [*pool.map(join_fleet, databases, [f"f{number}"] * 2, [OWN] * 2, own)]
            assert found[0] == found[1]
            assert found[0] in own


def test_of_two_that_start_at_once_and_differ_one_is_refused(databases: tuple[Database, Database]) -> None:
    def join(database: Database, name: str, own: Mapping[str, str]) -> str | None:
        try:
            start(database, name, own, MEASURED)
        except StartupError as exc:
            return str(exc)
        return None

    with ThreadPoolExecutor(2) as pool:
        for number in range(20):
            told = [*pool.map(join, databases, [f"f{number}"] * 2, [OWN, {**OWN, "SAE big": "t"}])]
            (said,) = filter(None, told)
            assert "SAE big is " in said
            assert list_fleets(databases[0])[f"f{number}"].fingerprint["SAE big"] == ("s" if told[0] is None else "t")


def test_a_server_whose_start_fails_founds_nothing(databases: tuple[Database, Database]) -> None:
    first, second = databases
    failed = {**OWN, "--max-dose": "0.01"}
    join_fleet(first, "f", failed, scaled(3.0))
    assert list_fleets(first) == {}
    joined = join_fleet(second, "f", OWN, MEASURED)
    assert joined == MEASURED
    with pytest.raises(StartupError, match=r"--max-dose is 0\.01 here, and not there there"):
        confirm_fleet(first, "f", failed, scaled(3.0))
    confirm_fleet(second, "f", OWN, joined)
    assert list_fleets(first)["f"].fingerprint == OWN
    with pytest.raises(StartupError, match="not like those of the fleet"):
        join_fleet(first, "f", failed, MEASURED)
    confirm_fleet(first, "f", OWN, join_fleet(first, "f", OWN, scaled(1.001)))


def test_a_server_that_took_what_is_no_longer_written_does_not_answer(databases: tuple[Database, Database]) -> None:
    first, second = databases
    taken = join_fleet(first, "f", OWN, MEASURED)
    other = join_fleet(second, "f", {**OWN, "SAE big": "t"}, scaled(2.0))
    join_fleet(second, "f", OWN, scaled(1.5))
    assert other == scaled(2.0)
    with pytest.raises(StartupError, match="founded anew while this server started"):
        confirm_fleet(first, "f", OWN, taken)


def test_a_database_of_one_machine_is_refused(tmp_path: Path, postgres: str) -> None:
    database = Database(f"sqlite:///{tmp_path}/variants.sqlite3")
    with pytest.raises(StartupError, match="name a PostgreSQL database with --variants postgresql"):
        check_database(database)
    database.close()
    shared = Database(postgres)
    check_database(shared)
    shared.close()


class Described:
    """What a server's fingerprint is made of."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"0" * 100)
        (folder / "README.md").write_text("x")
        self.folder = folder
        self.args = Namespace(
            model=str(folder),
            served_model_name=["tiny"],
            chat_template=None,
            max_model_len=None,
            **dict.fromkeys(SETTINGS + FILES),
        )
        self.config = SimpleNamespace(
            dtype="torch.float32",
            quantization=None,
            max_model_len=64,
            revision=None,
            hf_config=SimpleNamespace(_commit_hash=None),
        )
        self.options = ServeOptions(str(folder), (), ())
        self.places = (VectorSite(Site("resid_post", 3), 8, 2),)
        self.entry = entry("big", 8, 100, FeatureNote(4, "bridge", 200.0))
        self.labels: Any = None
        self.curves: dict[int, dict[str, Any]] = {4: {"at": [1.0]}}

    def fields(self) -> dict[str, str]:
        sae = ServedSAE(self.entry, SiteNorms(1.0, []), None, self.labels, self.curves)
        return server_fingerprint(self.args, self.plan(), self.config, {self.entry.name: sae})

    def plan(self, database: Any = None, fleet: str | None = None) -> ServePlan:
        model = ModelInfo(str(self.folder), "LlamaForCausalLM", 8, 4, 16, False)
        options = replace(self.options, fleet=fleet)
        return ServePlan(options, model, {self.entry.name: self.entry}, self.places, database, None)


def other_template(own: Described) -> None:
    own.args.chat_template = "{{ messages[0]['content'] }}"


def other_labels(own: Described) -> None:
    (own.folder.parent / "labels.parquet").write_bytes(b"1")
    own.labels = SimpleNamespace(path=own.folder.parent / "labels.parquet")


CHANGES: dict[str, Callable[[Described], Any]] = {
    "the model": lambda own: (own.folder / "config.json").write_text('{"a": 1}'),
    "the names that it is served under": lambda own: own.args.served_model_name.append("too"),
    "--dtype": lambda own: setattr(own.config, "dtype", "torch.bfloat16"),
    "--quantization": lambda own: setattr(own.config, "quantization", "fp8"),
    "--max-model-len": lambda own: setattr(own.config, "max_model_len", 65),
    "--chat-template": other_template,
    "--seed": lambda own: setattr(own.args, "seed", 1),
    "--max-dose": lambda own: setattr(own, "options", replace(own.options, max_dose=50.0)),
    "--max-body": lambda own: setattr(own, "options", replace(own.options, max_body=1)),
    "--max-features": lambda own: setattr(own, "options", replace(own.options, max_features=1)),
    "the sites for vectors": lambda own: setattr(own, "places", (own.places[0]._replace(capacity=3),)),
    "the names of the SAEs": lambda own: setattr(own, "entry", replace(own.entry, name="bigger")),
    "SAE big": lambda own: setattr(own, "entry", replace(own.entry, sha256="other")),
    "the feature book of big": lambda own: setattr(
        own, "entry", replace(own.entry, features={4: FeatureNote(4, "bridge", 201.0)})
    ),
    "the labels of big": other_labels,
    "the calibration curves of big": lambda own: own.curves[4]["at"].append(2.0),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_server_that_differs_is_refused_by_the_name_of_what_differs(
    databases: tuple[Database, Database], tmp_path: Path, field: str
) -> None:
    own = Described(tmp_path / "model")
    start(databases[0], "f", own.fields(), MEASURED)
    CHANGES[field](own)
    with pytest.raises(StartupError) as raised:
        join_fleet(databases[1], "f", own.fields(), MEASURED)
    assert f"not like those of the fleet 'f': {field} is " in str(raised.value)
    assert "\n" not in str(raised.value)


EARLY = CHANGES.keys() - {"the labels of big", "the calibration curves of big"}


@pytest.mark.parametrize("field", sorted(EARLY))
def test_what_is_known_before_the_engine_starts_is_refused_before_it(
    databases: tuple[Database, Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    own = Described(tmp_path / "model")
    monkeypatch.setattr(
        AsyncEngineArgs, "from_cli_args", lambda args: SimpleNamespace(create_model_config=lambda: own.config)
    )

    def refuse() -> None:
        asyncio.run(fingerprint.refuse_unlike_fleet(own.args, own.plan(databases[1], "f")))

    refuse()
    join_fleet(databases[0], "f", {"SAE big": "failed to start"}, MEASURED)
    refuse()
    start(databases[0], "f", own.fields(), MEASURED)
    refuse()
    CHANGES[field](own)
    with pytest.raises(StartupError) as raised:
        refuse()
    assert f"not like those of the fleet 'f': {field} is " in str(raised.value)


def test_a_length_that_only_the_engine_knows_is_compared_when_it_stands(
    databases: tuple[Database, Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Described(tmp_path / "model")
    monkeypatch.setattr(
        AsyncEngineArgs, "from_cli_args", lambda args: SimpleNamespace(create_model_config=lambda: own.config)
    )
    start(databases[0], "f", own.fields(), MEASURED)
    own.args.max_model_len, own.config.max_model_len = -1, 1 << 20
    asyncio.run(fingerprint.refuse_unlike_fleet(own.args, own.plan(databases[1], "f")))


def test_all_that_differs_is_told_at_once(databases: tuple[Database, Database], tmp_path: Path) -> None:
    own = Described(tmp_path / "model")
    start(databases[0], "f", own.fields(), MEASURED)
    for field in ("--dtype", "--max-dose"):
        CHANGES[field](own)
    with pytest.raises(StartupError, match=r"--dtype is .* there; --max-dose is 50.0 here, and None there"):
        join_fleet(databases[1], "f", own.fields(), MEASURED)
    for field in EARLY - {"the names of the SAEs"}:
        CHANGES[field](own)
    with pytest.raises(StartupError, match=r"; \d+ more fields differ\. Serve with the same"):
        join_fleet(databases[1], "f", own.fields(), MEASURED)


def test_weights_of_another_size_are_another_model(databases: tuple[Database, Database], tmp_path: Path) -> None:
    own = Described(tmp_path / "model")
    before = own.fields()
    (own.folder / "model.safetensors").write_bytes(b"0" * 101)
    assert [field for field in before if before[field] != own.fields()[field]] == ["the model"]


@pytest.mark.parametrize("name", ["tokenizer", "generation_config"])
def test_files_that_settings_name_are_compared_by_what_is_in_them(
    databases: tuple[Database, Database], tmp_path: Path, name: str
) -> None:
    one, other = Described(tmp_path / "one"), Described(tmp_path / "other")
    for own in (one, other):
        folder = tmp_path / f"{own.folder.name}-files"
        folder.mkdir()
        (folder / "generation_config.json").write_text('{"temperature": 1.0}')
        setattr(own.args, name, str(folder))
    assert one.fields() == other.fields()
    start(databases[0], "f", one.fields(), MEASURED)
    (tmp_path / "other-files" / "generation_config.json").write_text('{"temperature": 0.1}')
    with pytest.raises(StartupError, match=rf"--{name.replace('_', '-')} is "):
        join_fleet(databases[1], "f", other.fields(), MEASURED)


OWN_TO_A_SERVER = {
    # where it listens and to whom, what it logs, how it loads and computes; answers are the same, or differ in last digits
    *(
        "help",
        "model_tag",
        "config",
        "fail_on_environ_validation",
        "host",
        "port",
        "root_path",
        "api_key",
        "middleware",
    ),
    *("enable_offline_docs", "allow_credentials", "allowed_origins", "allowed_methods", "allowed_headers"),
    *("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "enable_ssl_refresh", "ssl_cert_reqs", "ssl_ciphers"),
    *("h11_max_incomplete_event_size", "h11_max_header_count", "enable_server_load_tracking"),
    *("disable_log_stats", "aggregate_engine_logging", "enable_log_requests", "max_log_len", "enable_log_outputs"),
    *("enable_log_deltas", "log_error_stack", "log_level", "log_config_file", "logging_config", "uvicorn_log_level"),
    *("disable_uvicorn_access_log", "disable_access_log_for_endpoints", "show_hidden_metrics_for_version"),
    *("otlp_traces_endpoint", "collect_detailed_traces", "per_request_spec_decode_metrics", "kv_cache_metrics"),
    *("kv_cache_metrics_sample", "custom_histogram_buckets", "cudagraph_metrics", "enable_mfu_metrics"),
    *("enable_logging_iteration_details", "jit_monitor_mode", "jit_monitor_verbose", "use_tqdm_on_load"),
    *("hf_token", "download_dir", "enforce_eager", "safetensors_load_strategy", "safetensors_prefetch_num_threads"),
    *("safetensors_prefetch_block_size", "model_loader_extra_config", "ignore_patterns", "pt_load_map_location"),
    *("max_parallel_loading_workers", "attention_backend", "attention_config", "disable_cascade_attn"),
    *("compilation_config", "optimization_level", "performance_mode", "cudagraph_capture_sizes", "moe_backend"),
    *("max_cudagraph_capture_size", "enable_flashinfer_autotune", "linear_backend", "disable_custom_all_reduce"),
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_timeout_seconds"),
    *("cpu_distributed_timeout_seconds", "block_size", "gpu_memory_utilization", "kv_cache_memory_bytes"),
    *("num_gpu_blocks_override", "kv_offloading_size", "max_num_batched_tokens", "max_num_scheduled_tokens"),
    *("max_num_seqs", "max_num_active_seqs", "max_num_queued_reqs", "max_num_queued_tokens", "enable_chunked_prefill"),
    *("long_prefill_token_threshold", "long_prefill_token_threshold_adaptive", "scheduler_reserve_full_isl"),
    *("watermark", "prefill_schedule_interval", "disable_hybrid_kv_cache_manager", "async_scheduling"),
    *("api_server_count", "config_format", "convert", "data_parallel_backend", "distributed_executor_backend"),
    *("kv_offloading_backend", "load_format", "model_impl", "prefix_caching_hash_algo", "runner"),
}
COMPARED_OTHERWISE = {"served_model_name", "chat_template", "dtype", "max_model_len"}


def test_of_each_flag_that_may_be_given_it_is_known_whether_servers_may_differ_in_it() -> None:
    compared = {*SETTINGS, *FILES, *COMPARED_OTHERWISE}
    given = ALLOWED | SOME_VALUES.keys()
    assert not compared & OWN_TO_A_SERVER
    assert given - compared - OWN_TO_A_SERVER == set()
    assert given >= OWN_TO_A_SERVER


def test_another_version_of_a_package_is_refused(
    databases: tuple[Database, Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Described(tmp_path / "model")
    start(databases[0], "f", own.fields(), MEASURED)
    monkeypatch.setattr(fingerprint, "version", lambda name: "9")
    with pytest.raises(StartupError, match="saeclamp is 9 here, and "):
        join_fleet(databases[1], "f", own.fields(), MEASURED)


def test_where_the_same_files_lie_does_not_matter(tmp_path: Path) -> None:
    one, other = Described(tmp_path / "one"), Described(tmp_path / "other")
    (other.folder / "README.md").write_text("another text")
    (other.folder / ".gitattributes").write_text("x")
    assert one.fields() == other.fields()
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    one.args.chat_template = str(template)
    other_template(other)
    assert one.fields() == other.fields()


def test_variants_by_the_streams_length_mean_the_same_on_both_at_a_rounding_edge(
    databases: tuple[Database, Database],
) -> None:
    """Measured an ulp apart, the four digits that doses go by differ."""
    low = next(n / 1000 + 0.005 for n in range(12340, 99999, 10) if rounded(n / 1000 + 0.005) < n / 1000 + 0.005)
    while rounded(math.nextafter(low, math.inf)) == rounded(low):
        low = math.nextafter(low, math.inf)
    lengths = [low, math.nextafter(low, math.inf)]
    push = Steering(interventions=(Add(feature="big/bridge", value=0.5, unit="resid_norm"),))
    own = [{"big": QuickCheckResult(SiteNorms(length, [2.0] * 100), None)} for length in lengths]

    def made(measured: Mapping[str, QuickCheckResult], database: Database, name: str) -> tuple[str, str]:
        context = served(resid_norm=measured["big"].norms.median_resid_norm or 0.0)
        variants = VariantRegistry(VariantStore(database), context, ["tiny"])
        return create(variants, name, push)[0].meaning, resolve(push, context).program.spec

    alone = [made(norms, database, "alone") for norms, database in zip(own, databases, strict=True)]
    assert alone[0][1] != alone[1][1]
    joined = [join_fleet(database, "f", OWN, norms) for norms, database in zip(own, databases, strict=True)]
    together = [made(norms, database, "together") for norms, database in zip(joined, databases, strict=True)]
    assert together[0] == together[1] == alone[0]


@pytest.mark.parametrize("flag", ["--fleet", "--replica"])
def test_names_of_fleets_and_replicas_are_plain(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = parse_args(["serve", "m", "--sae", "none", "--vector-site", "all", flag, "a.b-1"])
    assert getattr(options, flag[2:]) == "a.b-1"
    for name in ("", "a b", "x" * 65, "a\n"):
        with pytest.raises(SystemExit):
            parse_args(["serve", "m", "--sae", "none", "--vector-site", "all", flag, name])
        assert "is not 1 to 64 letters, digits" in capsys.readouterr().err
