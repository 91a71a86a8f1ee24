"""Vectors that are harvested once: stopped anywhere they are the same, and SAEs are trained on them as on documents."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny_models import make
from tests.support.tiny_training import corpus, everything, harvest, reader, recipe, settings, texts, wanted

from saeclamp_saes import read_sae
from saeclamp_saes.errors import TrainingError
from saeclamp_saes.io.hashes import sha256_of
from saeclamp_saes.lm.harvest import ActivationReader
from saeclamp_saes.sites import Site
from saeclamp_saes.training.activations_store import ActivationsStore, write_store
from saeclamp_saes.training.resume_checkpoint import load
from saeclamp_saes.training.run import train, train_from
from saeclamp_saes.training.trainer import Trainer

SITES = (Site("resid_post", 0), Site("resid_post", 2))
CPU = torch.device("cpu")
ALL = 10**6
"""More tokens than the documents have."""


class Stopped(Exception):
    """As if the process had been killed."""


def stop(after: int) -> Any:
    """Make a report that raises when it is called for the n-th time."""
    left = [after]

    def report(doing: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Stopped

    return report


def two_places(**options: Any) -> ActivationReader:
    return replace(reader(), sites=SITES, **options)


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def test_every_place_has_the_vectors_of_the_same_tokens(tmp_path: Path) -> None:
    data, reading = corpus(tmp_path / "data"), two_places()
    store = write_store(tmp_path / "store", wanted(data, ALL), reading)
    for site in SITES:
        alone = replace(reading, sites=(site,))
        assert torch.equal(store.rows(site).tensor, everything(harvest(alone, data)))
        assert torch.equal(store.held_out(site).tensor, everything(harvest(alone, data, held_out=True)))
    assert store.sites == list(SITES)
    assert (store.width, store.prepends_bos) == (16, False)


def test_a_harvest_that_is_stopped_again_and_again_comes_to_the_same(
    tmp_path: Path,
) -> None:
    data, reading = corpus(tmp_path / "data"), two_places(batch_tokens=64)
    write_store(tmp_path / "whole", wanted(data, 1500), reading)
    kept = []
    for after in (1, 12, 18, 20, 25, 10**9):
        try:
            write_store(tmp_path / "stopped", wanted(data, 1500), reading, stop(after))
        except Stopped:
            states = [tmp_path / "stopped" / f"{side}.json" for side in ("held-out", "training")]
            kept.append(sum(json.loads(state.read_text())["filled"] for state in states if state.exists()))
            with pytest.raises(TrainingError, match="is not finished"):
                ActivationsStore.open(tmp_path / "stopped")
    assert len(kept) == 5
    assert len(set(kept)) >= 4
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    assert ActivationsStore.open(tmp_path / "whole").num_rows == 1500


def test_training_on_kept_vectors_is_training_on_their_documents(tmp_path: Path) -> None:
    """With a pool that holds everything, the two ways see the same vectors in the same order."""
    data, reading = corpus(tmp_path / "data"), reader()
    what = recipe()
    train(settings(tmp_path / "documents", pool_tokens=ALL), what, wanted(data, ALL), reading)
    store = write_store(tmp_path / "store", wanted(data, ALL), reading)
    train_from(settings(tmp_path / "vectors"), what, [store], reading.sites[0], CPU)
    one, other = (tmp_path / name / "sae" / "sae_weights.safetensors" for name in ("documents", "vectors"))
    assert sha256_of(one) == sha256_of(other)


def test_a_store_that_is_named_twice_counts_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    step = Trainer.step

    def watched(self: Trainer, x: torch.Tensor) -> Any:
        seen.append(x.clone())
        return step(self, x)

    monkeypatch.setattr(Trainer, "step", watched)
    first, second = corpus(tmp_path / "first"), tmp_path / "second"
    second.mkdir()
    (second / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts(30, seed=5)))
    site = reader().sites[0]
    one, two = (write_store(tmp_path / f"{d.name}-store", wanted(d, ALL), reader()) for d in (first, second))
    total = one.num_rows + 2 * two.num_rows
    what = recipe(tokens=total - total % 32, batch=32)
    exported = train_from(settings(tmp_path / "run"), what, [two, one, two], site, CPU)
    scale = load(tmp_path / "run" / "checkpoint.safetensors", Trainer(what, torch.zeros(16)), CPU).scale
    rows = torch.cat([two.rows(site).tensor, one.rows(site).tensor, two.rows(site).tensor]).float() * scale
    left = Counter(map(tuple, rows.tolist()))
    left.subtract(map(tuple, torch.cat(seen).tolist()))
    assert total - what.tokens == sum(left.values()) < 32
    assert min(left.values()) == 0
    assert exported.figures.num_tokens == one.num_held_out + two.num_held_out
    training = json.loads((exported.folder / "cfg.json").read_text())["metadata"]["training"]
    assert [kept["times"] for kept in training["vectors"].values()] == [2, 1]
    assert read_sae(exported.folder).site == site


def test_a_run_on_kept_vectors_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    data, site = corpus(tmp_path / "data"), reader().sites[0]
    store = write_store(tmp_path / "store", wanted(data, ALL), reader())
    train_from(settings(tmp_path / "whole"), recipe(), [store], site, CPU)
    for after in (1, 2, 3, 4):
        with pytest.raises(Stopped):
            train_from(settings(tmp_path / "run"), recipe(), [store], site, CPU, stop(after))
    train_from(settings(tmp_path / "run"), recipe(), [store], site, CPU)
    names = ("sae/sae_weights.safetensors", "sae/cfg.json")
    assert [sha256_of(tmp_path / "run" / name) for name in names] == [
        sha256_of(tmp_path / "whole" / name) for name in names
    ]


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    store = write_store(tmp_path / "store", wanted(data, ALL), reader())
    other = write_store(tmp_path / "other", replace(wanted(data, ALL), model_name="another"), reader())
    with pytest.raises(TrainingError, match="vectors of different models"):
        train_from(settings(tmp_path / "run"), recipe(), [store, other], reader().sites[0], CPU)
    with pytest.raises(TrainingError, match=r"holds vectors of resid_post 1, and none of resid_post 2"):
        train_from(settings(tmp_path / "run"), recipe(), [store], SITES[1], CPU)
    with pytest.raises(TrainingError, match="fewer than a batch of 9000"):
        train_from(settings(tmp_path / "run"), recipe(batch=9000, tokens=10**5), [store], reader().sites[0], CPU)
    with pytest.raises(TrainingError, match="another context"):
        write_store(tmp_path / "store", wanted(data, ALL), replace(reader(), context=30))
    with pytest.raises(TrainingError, match="holds no harvested vectors"):
        ActivationsStore.open(data)
    with pytest.raises(TrainingError, match="No document was held out"):
        write_store(tmp_path / "none", wanted(data, ALL, held_out_share=0.0), reader())


def test_a_model_without_the_place_leaves_no_folder(tmp_path: Path) -> None:
    from saeclamp_saes.errors import VerificationError

    data = corpus(tmp_path / "data")
    with pytest.raises(VerificationError, match="layers 0 to 2"):
        write_store(tmp_path / "store", wanted(data), replace(reader(make("llama")), sites=(Site("resid_post", 7),)))
    assert not (tmp_path / "store").exists()
