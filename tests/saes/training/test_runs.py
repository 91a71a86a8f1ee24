"""Whole runs on a tiny model: stopped anywhere they come to the same, and their files are what was trained."""

from __future__ import annotations

import csv
import importlib.util
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.tiny_training import LAYER, corpus, reader, recipe, settings, wanted
from torch import Tensor

from saeclamp_saes import Site, read_sae
from saeclamp_saes.errors import TrainingError
from saeclamp_saes.io.hashes import sha256_of
from saeclamp_saes.io.vector_files import VectorFile
from saeclamp_saes.training.architectures import ARCHITECTURES
from saeclamp_saes.training.config import NAMES, Name, TrainingConfig
from saeclamp_saes.training.resume_checkpoint import load
from saeclamp_saes.training.run import train
from saeclamp_saes.training.trainer import Trainer


class Stopped(Exception):
    """As if the process had been killed."""


class StopAfter:
    """Stops a run at the n-th report."""

    def __init__(self, num: int) -> None:
        self.left = num

    def __call__(self, doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stopped


def finished(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for times."""
    lines = list(csv.DictReader((folder / "log.csv").open()))
    for line in lines:
        assert float(line.pop("tokens_per_second")) > 0
    return {
        "weights": sha256_of(folder / "sae" / "sae_weights.safetensors"),
        "config": json.loads((folder / "sae" / "cfg.json").read_text()),
        # the order of its header's entries is not determined
        "checkpoint": {name: t.tolist() for name, t in load_file(folder / "checkpoint.safetensors").items()},
        "log": lines,
        "files": sorted(path.name for path in folder.iterdir()),
    }


SMALL_POOL = {"pool_tokens": 32 * 20}
"""A fraction of what is trained on, so that it is refilled many times, and the documents are read again."""
LARGE_POOL = {"pool_tokens": 32 * 1000}
"""More than all the documents have."""


@pytest.mark.parametrize("pool", [SMALL_POOL, LARGE_POOL], ids=["refilled", "whole"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_stopped_again_and_again_comes_to_the_same(
    tmp_path: Path, name: Name, pool: dict[str, int]
) -> None:
    data, reading, what = corpus(tmp_path / "data"), reader(), recipe(architecture=name, annealed=0.2)
    train(settings(tmp_path / "whole", **pool), what, wanted(data), reading)
    stops = 0
    for num in (1, 9, 17, 30, 30, 30, 45, 45, 60, 60, 10**9):
        try:
            train(settings(tmp_path / "stopped", **pool), what, wanted(data), reading, StopAfter(num))
        except Stopped:
            stops += 1
    assert stops > 5
    assert finished(tmp_path / "stopped") == finished(tmp_path / "whole")


def test_another_seed_gives_another_sae(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    for seed in (0, 1):
        train(settings(tmp_path / str(seed)), recipe(seed=seed), wanted(data), reader())
    assert finished(tmp_path / "0")["weights"] != finished(tmp_path / "1")["weights"]


def test_every_vector_is_harvested_once_and_trained_on_as_often(tmp_path: Path) -> None:
    """What the steps get, sorted, is what the harvest gives, over all refills and a second reading of the documents."""
    seen: list[Tensor] = []
    step = Trainer.step
    data, reading, what = corpus(tmp_path / "data", 40), reader(), recipe()

    def watched(self: Trainer, x: Tensor) -> Any:
        seen.append(x.clone())
        return step(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", watched)
        train(settings(tmp_path / "run"), what, wanted(data), reading)
    from tests.support.tiny_training import everything, harvest

    once = everything(harvest(reading, data)).float()
    num = what.num_steps * what.batch
    assert len(once) < num
    scale = load(tmp_path / "run" / "checkpoint.safetensors", Trainer(what, torch.zeros(16)), torch.device("cpu")).scale
    expected = torch.cat([once] * (num // len(once) + 1))[:num] * scale
    got = torch.cat(seen)
    assert len(got) == num
    assert sorted(got.tolist()) == sorted(expected.tolist())


def run_of(tmp_path: Path, name: Name, **options: Any) -> tuple[Path, TrainingConfig]:
    data, what = corpus(tmp_path / "data"), recipe(architecture=name)
    train(settings(tmp_path / "run", keep_vectors=True, **options), what, wanted(data), reader())
    return tmp_path / "run", what


def held_out(run: Path) -> Tensor:
    num = json.loads((run / "held-out.json").read_text())["filled"]
    size = (run / "held-out.rows").stat().st_size // 32
    return VectorFile(run / "held-out.rows", size, 16, "bfloat16", begun=True).tensor[:num].float()


@pytest.mark.parametrize("name", NAMES)
def test_the_files_hold_what_was_trained_in_the_models_own_units(tmp_path: Path, name: Name) -> None:
    run, what = run_of(tmp_path, name)
    trainer = Trainer(what, torch.zeros(16))
    scale = load(run / "checkpoint.safetensors", trainer, torch.device("cpu")).scale
    sae, x = read_sae(run / "sae"), held_out(run)
    dictionary = trainer.sae
    assert (str(sae.site), sae.d_in, sae.d_sae) == (f"resid_post {LAYER}", 16, 24)
    assert sae.architecture == {"standard": "relu"}.get(ARCHITECTURES[name].saved_as, ARCHITECTURES[name].saved_as)
    lengths = dictionary.W_dec.norm(dim=1)
    pre = dictionary.pre(x * scale).detach() * lengths.detach() / scale
    acts = sae.encode(x)
    if name == "topk":
        kept = torch.zeros_like(pre).scatter(1, pre.topk(4, dim=1).indices, 1.0) * pre.relu()
    elif name == "relu":
        kept = pre.relu()
    else:
        threshold = dictionary.threshold.detach() / scale if name == "jumprelu" else sae.threshold
        kept = torch.where(pre > threshold, pre, 0.0)
    torch.testing.assert_close(acts, kept, rtol=1e-4, atol=1e-4)
    reconstruction = ((kept * scale / lengths) @ dictionary.W_dec + dictionary.b_dec).detach() / scale
    torch.testing.assert_close(sae.decode(acts, x), reconstruction, rtol=1e-4, atol=1e-4)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(24), atol=1e-5)
    if ARCHITECTURES[name].calibrated:
        assert int(acts.count_nonzero()) == pytest.approx(4 * len(x), abs=3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_figures_and_provenance_are_in_the_configuration(tmp_path: Path, dtype: Any) -> None:
    run, _ = run_of(tmp_path, "batchtopk", dtype=dtype, command="saeclamp train --k 4")
    sae, x = read_sae(run / "sae"), held_out(run)
    cfg = json.loads((run / "sae" / "cfg.json").read_text())
    training = cfg["metadata"]["training"]
    acts = sae.encode(x)
    assert training["held_out"]["l0"] == pytest.approx(float(acts.count_nonzero()) / len(x), abs=1e-3)
    ratio = (x - sae.decode(acts, x)).square().sum() / (x - x.mean(dim=0)).square().sum()
    assert training["held_out"]["explained_variance"] == pytest.approx(1 - float(ratio), abs=1e-4)
    assert training["held_out"]["num_tokens"] == len(x)
    assert (training["rounding_error"] == 0) is (dtype == "float32")
    assert training["rounding_error"] < 0.2
    weights = run / "sae" / "sae_weights.safetensors"
    assert {str(tensor.dtype) for tensor in load_file(weights).values()} == {f"torch.{dtype}"}
    assert weights.stat().st_mode == (run / "sae" / "cfg.json").stat().st_mode
    assert cfg["metadata"]["hook_name"] == f"blocks.{LAYER}.hook_resid_post"
    data = tmp_path / "data"
    assert training["data_sha256"] == {name: sha256_of(data / name) for name in ("a.jsonl.gz", "b.jsonl")}
    assert (training["command"], training["recipe"]["seed"]) == ("saeclamp train --k 4", 0)
    assert training["model"] == {"name": "tiny", "sha256": {"model.safetensors": "0" * 64}}


@pytest.mark.skipif(importlib.util.find_spec("sae_lens") is None, reason="sae-lens is not installed")
def test_sae_lens_reads_the_same_codes_and_what_was_trained(tmp_path: Path) -> None:
    import sae_lens

    for name in NAMES:
        run, _ = run_of(tmp_path / name, name)
        sae, x = read_sae(run / "sae"), held_out(run)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = sae_lens.SAE.load_from_disk(run / "sae")
        acts = sae.encode(x)
        assert acts.count_nonzero() > len(x)
        torch.testing.assert_close(theirs.encode(x), acts, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(theirs(x), sae.decode(acts, x), rtol=1e-4, atol=1e-4)
        metadata = theirs.cfg.metadata.to_dict()
        assert metadata == json.loads((run / "sae" / "cfg.json").read_text())["metadata"]
        assert (metadata["hook_name"], metadata["model_name"]) == (f"blocks.{LAYER}.hook_resid_post", "tiny")
        assert (metadata["context_size"], metadata["prepend_bos"]) == (40, False)
        assert metadata["model_class_name"] == "HookedTransformer"


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    first = train(settings(tmp_path / "run"), recipe(), wanted(data), reader())
    before = finished(tmp_path / "run")
    assert before["files"] == [
        "checkpoint.safetensors",
        "limits.json",
        "lock",
        "log.csv",
        "run.json",
        "sae",
    ]
    again = train(settings(tmp_path / "run"), recipe(), wanted(data), reader(), StopAfter(1))
    assert (again, finished(tmp_path / "run")) == (first, before)


def test_a_folder_goes_on_only_with_the_same_run(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    with pytest.raises(Stopped):
        train(settings(tmp_path / "run"), recipe(), wanted(data), reader(), StopAfter(9))
    with pytest.raises(TrainingError, match=r"holds a run with another recipe k \(4, and now 5\): give a new folder"):
        train(settings(tmp_path / "run"), recipe(k=5), wanted(data), reader())
    with pytest.raises(TrainingError, match="another site "):
        train(settings(tmp_path / "run"), recipe(), wanted(data), replace(reader(), sites=(Site("resid_post", 0),)))
    (data / "b.jsonl").write_text('{"text": "another text, but not a long one"}\n')
    with pytest.raises(TrainingError, match=r"another data_sha256 b\.jsonl"):
        train(settings(tmp_path / "run"), recipe(), wanted(data), reader())
    with pytest.raises(TrainingError, match="is not empty and holds no run"):
        train(settings(data), recipe(), wanted(data), reader())


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")

    def meanwhile(doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        with pytest.raises(TrainingError, match="Another process is at work in"):
            train(settings(tmp_path / "run"), recipe(), wanted(data), reader())
        raise Stopped

    with pytest.raises(Stopped):
        train(settings(tmp_path / "run"), recipe(), wanted(data), reader(), meanwhile)


@pytest.mark.parametrize(
    ("options", "what", "said"),
    [
        ({"held_out_share": 0.0}, {}, "No document was held out"),
        ({"held_out_share": 0.999999}, {}, "fewer than a batch of 32"),
        ({}, {"batch": 3000, "tokens": 60_000}, "ordinary tokens to train on, fewer than a batch of 3000"),
    ],
)
def test_too_few_data_are_refused_and_leave_the_folder_free(
    tmp_path: Path, options: dict[str, Any], what: dict[str, Any], said: str
) -> None:
    data = corpus(tmp_path / "data", 50)
    with pytest.raises(TrainingError, match=said):
        train(
            settings(tmp_path / "run", pool_tokens=10**5),
            recipe(**what),
            wanted(data, recipe(**what).tokens, **options),
            reader(),
        )
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    with pytest.raises(TrainingError, match="Training diverged"):
        train(settings(tmp_path / "run"), recipe(architecture="relu", lr=1e30), wanted(data), reader())
