"""Converting pickles: what comes out computes what the family computes, and nothing a file holds is believed or run."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.saes.loaders.layouts import (
    Written,
    connor_rob,
    crosscoders,
    dictionary_learning,
    e2e,
    goodfire,
    openai_gpt2,
    qresearch,
    qwen_scope,
    tokens,
)
from tests.support.convert_fixture import Payload, forked, refusal

from saeclamp_saes import Options, read_sae
from saeclamp_saes.cli import convert as command
from saeclamp_saes.conversion import Limits, convert
from saeclamp_saes.conversion.pickles import check_torch
from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.loaders import native, summarize
from saeclamp_saes.sae import SAE, Kind
from saeclamp_saes.sites import Site


def slow_pickle(path: Path) -> Path:
    """Write a pickle that takes a minute to read: it puts a number on the stack sixty million times."""
    path.write_bytes(b"\x80\x02" + b"K\x01" * 60_000_000)
    return path


FAMILIES: dict[str, tuple[Callable[[Path], Written], str]] = {
    "goodfire": (goodfire.write, ""),
    "qresearch": (qresearch.write, ""),
    "dictionary_learning": (dictionary_learning.write, ""),
    "dictionary_learning, to resume": (lambda folder: dictionary_learning.write(folder, norm_factor=2.0), ""),
    "openai_gpt2": (openai_gpt2.write, ""),
    "qwen_scope": (qwen_scope.write, ""),
    "crosscoder of two models": (crosscoders.write_models, ""),
    "crosscoder of layers": (
        lambda folder: crosscoders.write_layers(folder, norms=(2, 4, 5)),
        "input_scale=0.5,0.25,0.2",
    ),
    "connor_rob": (connor_rob.write, ""),
    "e2e": (e2e.write, ""),
    "e2e, a run": (lambda folder: e2e.write_run(folder)[5], "layer=5"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_converted_computes_what_its_family_computes(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family != "goodfire":  # the one that goes the whole way, in a process with an empty environment
        monkeypatch.setattr("saeclamp_saes.conversion.run_sandbox", forked)
    write, options = FAMILIES[family]
    written = write(tmp_path / "published")
    conversion = convert(written.path, tmp_path / "converted", Options.parse(options))
    sae = read_sae(conversion.path)
    x = tokens(sae.d_in)
    acts = written.encode(x)
    assert 0.05 < (acts > 0).double().mean() < 0.95
    torch.testing.assert_close(sae.encode(x).double(), acts, rtol=1e-4, atol=1e-4)
    decoded = sae.decode(acts.float(), x.float()).double()
    torch.testing.assert_close(decoded, written.decode(acts, x), rtol=1e-4, atol=1e-4)
    assert sorted(path.name for path in conversion.path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    with safe_open(conversion.path / "sae_weights.safetensors", framework="pt") as file:
        assert "encoder_rows" in file.keys()  # noqa: SIM118 (no dict)


@pytest.mark.parametrize("kind", ["sae", "skip_transcoder", "clt_layer", "crosscoder"])
def test_a_skip_connection_is_read_back_as_it_was_written(kind: Kind, tmp_path: Path) -> None:
    site, generator = (Site("resid_post", 1),), torch.Generator().manual_seed(0)
    shapes = {"W_enc": (4, 6), "b_enc": (6,), "W_dec": (6, 4), "b_dec": (4,), "W_skip": (4, 4)}
    drawn = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    sae = SAE(site, site, threshold=torch.zeros(6), kind=kind, **drawn)
    native.write(sae, tmp_path, {})
    again = read_sae(tmp_path)
    assert again.kind == kind
    assert again.W_skip is not None
    assert torch.equal(again.W_skip, drawn["W_skip"])


def test_the_configuration_says_where_it_came_from(tmp_path: Path) -> None:
    source = goodfire.write(tmp_path / "published").path
    conversion = convert(source, tmp_path / "converted", Options.parse("site=resid_post.7"))
    config = json.loads((tmp_path / "converted" / "cfg.json").read_text())
    content = source.read_bytes()
    weights = (tmp_path / "converted" / "sae_weights.safetensors").read_bytes()
    origin = {"file": source.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert config["converted_from"] == [origin]
    assert config["weights_sha256"] == conversion.sha256 == hashlib.sha256(weights).hexdigest()
    assert (config["read_as"], config["options"]) == ("goodfire", "site=resid_post.7")
    assert config["converted_with"] == f"torch {torch.__version__}"
    assert summarize(tmp_path / "converted").reads == conversion.summary.reads


def test_an_approximation_stays_one(tmp_path: Path) -> None:
    source = qwen_scope.write(tmp_path / "published").path
    conversion = convert(source, tmp_path / "converted", Options.parse("threshold=0.5"))
    assert conversion.summary.approximation == "threshold 0.5 in place of TopK"
    assert summarize(tmp_path / "converted").approximation == "threshold 0.5 in place of TopK"


def test_what_is_no_pickle_is_converted_too(converted: Path, tmp_path: Path) -> None:
    again = convert(converted, tmp_path / "again")
    assert again.read_as == "saeclamp"
    assert again.sha256 == json.loads((converted / "cfg.json").read_text())["weights_sha256"]


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_code_in_a_pickle_is_refused_and_not_run(save: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    proof, path = tmp_path / "it-was-run", tmp_path / "sae.pt"
    payload = Payload(f"touch {proof}")
    save({"decoder.weight": payload}, path)
    assert refusal(path, tmp_path / "converted") == (
        f"{path} asks for posix.system, which is code and not numbers; nothing of it was run, and it is not converted."
    )
    assert not proof.exists()
    torch.load(path, weights_only=False) if save is torch.save else pickle.loads(path.read_bytes())
    assert proof.exists()  # so it was a real one


def test_a_bomb_is_refused_by_the_whole_way(tmp_path: Path) -> None:
    path = tmp_path / "sae.pt"
    torch.save({"W_enc": torch.ones(1).expand(1 << 20, 1 << 20)}, path)
    assert path.stat().st_size < 2000
    assert refusal(path, tmp_path / "converted") == f"{path}: W_enc declares {4 << 40} bytes and holds 4."


def test_memory_beyond_the_limit_ends_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "sae.pt"
    torch.save({"W_enc": torch.zeros(1 << 24)}, path, _use_new_zipfile_serialization=False)
    limits = Limits(memory_bytes=1 << 25, file_bytes=1 << 20, cpu_seconds=60)
    assert refusal(path, tmp_path / "converted", limits=limits) == (
        f"{path} needs more memory than a file of its size may take (32 MiB)."
    )


def test_a_result_beyond_the_limit_ends_in_one_sentence(tmp_path: Path) -> None:
    path = goodfire.write(tmp_path / "published", d_in=64, d_sae=2048).path
    limits = Limits(memory_bytes=1 << 32, file_bytes=1 << 16, cpu_seconds=60)
    assert "File too large" in refusal(path, tmp_path / "converted", limits=limits)


def test_computing_beyond_the_limit_ends_in_one_sentence(tmp_path: Path) -> None:
    path = slow_pickle(tmp_path / "sae.pt")
    limits = Limits(memory_bytes=1 << 32, file_bytes=1 << 20, cpu_seconds=3)
    assert refusal(path, tmp_path / "converted", limits=limits) == (
        f"{path} takes more than 3 seconds of computing to convert; it was ended."
    )


def test_a_timeout_ends_the_process_and_all_it_started(tmp_path: Path) -> None:
    path = slow_pickle(tmp_path / "sae.pt")
    started = time.monotonic()
    assert refusal(path, tmp_path / "converted", timeout_seconds=3) == (
        f"{path} was not converted within 3 seconds; converting it was ended."
    )
    assert time.monotonic() - started < 20
    assert not _processes_of(tmp_path)


def test_being_stopped_leaves_nothing_behind(tmp_path: Path) -> None:
    path = slow_pickle(tmp_path / "sae.pt")
    script = (
        "import argparse, sys; from saeclamp_saes.cli import convert; parser = argparse.ArgumentParser(); "
        "convert.register(parser.add_subparsers()); args = parser.parse_args(); sys.exit(args.run(args))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, "convert", str(path), str(tmp_path / "converted")])
    while not (children := _processes_of(tmp_path, but=process.pid)):
        assert process.poll() is None
        time.sleep(0.05)
    assert len(children) == 1
    assert len(list(tmp_path.glob(".converted.*.unfinished"))) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert not _processes_of(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def _processes_of(folder: Path, but: int = 0) -> list[str]:
    """Return the command lines of sandboxes that work on something in a folder."""
    lines = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = place.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:  # it has ended
            continue
        if str(folder) in line and place.parent.name != str(but):
            lines.append(line)
    return lines


def test_an_existing_destination_is_never_touched(tmp_path: Path) -> None:
    path = goodfire.write(tmp_path / "published").path
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("empty", "link"):
        assert refusal(path, tmp_path / name) == f"{tmp_path / name} exists already; converting never overwrites."


def test_folders_around_a_destination_are_made_and_are_gone_if_nothing_comes_of_it(tmp_path: Path) -> None:
    path = goodfire.write(tmp_path / "published").path
    (tmp_path / "file").write_text("")
    for parent in ("file", "file/deeper"):
        with pytest.raises(CheckpointError, match=r"cannot be written to: (Not a directory|File exists)"):
            convert(path, tmp_path / parent / "converted")
    assert convert(path, tmp_path / "a" / "b" / "converted").path.is_dir()
    broken = tmp_path / "broken.pt"
    torch.save({"x": torch.ones(3)}, broken)
    with pytest.raises(CheckpointError):
        convert(broken, tmp_path / "c" / "d" / "converted")
    assert not (tmp_path / "c").exists()


def test_a_source_that_is_missing_or_a_pipe_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "sae.pt", tmp_path / "converted") == f"{tmp_path} has no sae.pt."
    os.mkfifo(tmp_path / "pipe.pt")
    pipe = tmp_path / "pipe.pt"
    assert refusal(pipe, tmp_path / "converted") == f"{pipe} is not a regular file."


@pytest.mark.parametrize("version", ["2.9.1", "2.5.0+cu124", "1.13.1"])
def test_a_torch_with_unsafe_unpickling_is_refused(version: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        check_torch(version)
    assert str(raised.value) == (
        f"Converting a pickle needs torch 2.10 or later, because loading one with {version} can corrupt memory "
        "(CVE-2026-24747) or, before 2.6, run code (CVE-2025-32434)."
    )


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0a0+git"])
def test_a_torch_with_safe_unpickling_is_used(version: str) -> None:
    check_torch(version)


def run_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["convert", *arguments])
    code = args.run(args)
    assert isinstance(code, int)
    return code


def test_the_command_says_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = goodfire.write(tmp_path / "published").path
    assert run_command(f"{path}?site=resid_post.7", str(tmp_path / "converted")) == 0
    weights = (tmp_path / "converted" / native.WEIGHTS).read_bytes()
    assert capsys.readouterr().out.splitlines() == [
        f"written:       {tmp_path / 'converted'} (0.0 MiB)",
        "read as:       goodfire",
        "kind:          sae, relu",
        "site:          resid_post 7",
        "d_in x d_sae:  16 x 40",
        f"sha256:        {hashlib.sha256(weights).hexdigest()}",
    ]


def test_the_command_fails_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sae.pt").write_bytes(b"no pickle")
    assert run_command(str(tmp_path / "sae.pt"), str(tmp_path / "converted")) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"saeclamp: {tmp_path / 'sae.pt'} is not a pickle of tensors and plain values")
    assert said.err.count("\n") == 1
