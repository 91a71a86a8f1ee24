"""A folder of a run or a harvest: what it does not go on with, and what is found missing or damaged in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny_models import make
from tests.support.tiny_training import corpus, reader, recipe, settings, training, wanted

from saeclamp_saes.errors import SAEError, TrainingError
from saeclamp_saes.io.hashes import sha256_of
from saeclamp_saes.training.activations_store import ActivationsStore, write_store
from saeclamp_saes.training.harvest_config import HarvestConfig
from saeclamp_saes.training.run import train, train_from

CPU = torch.device("cpu")
Work = Callable[..., Any]
"""Of a folder, what is wanted and a reader; a report too, if one is given."""


class Stopped(Exception):
    """As if the process had been killed."""


def stop_at(doing: str, num: int = 1) -> Any:
    """Make a report that raises at the n-th one of a step."""
    left = [num]

    def report(now: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        left[0] -= now == doing
        if left[0] == 0:
            raise Stopped

    return report


def weights(run: Path) -> str:
    return sha256_of(run / "sae" / "sae_weights.safetensors")


def ordered(data: Path, *names: str) -> HarvestConfig:
    return replace(wanted(data), data=tuple(data / name for name in names))


# -------------------------------------------------------------------------------------------- what a run is the same by


@pytest.mark.parametrize("work", [training, write_store])
def test_a_run_does_not_go_on_with_its_data_in_another_order(tmp_path: Path, work: Work) -> None:
    data, out = corpus(tmp_path / "data"), tmp_path / "out"
    with pytest.raises(Stopped):
        work(out, ordered(data, "a.jsonl.gz", "b.jsonl"), reader(), stop_at("harvesting"))
    said = r"another order of the data \(a.jsonl.gz, b.jsonl, and now b.jsonl, a.jsonl.gz\)"
    with pytest.raises(TrainingError, match=said):
        work(out, ordered(data, "b.jsonl", "a.jsonl.gz"), reader())
    work(out, wanted(data), reader())  # a folder's files come by name, which is the same order


@pytest.mark.parametrize("work", [training, write_store])
@pytest.mark.parametrize("is_finished", [False, True])
def test_a_run_does_not_go_on_with_the_model_in_another_type(tmp_path: Path, work: Work, is_finished: bool) -> None:
    data, out = corpus(tmp_path / "data"), tmp_path / "out"
    if is_finished:
        work(out, wanted(data), reader())
    else:
        with pytest.raises(Stopped):
            work(out, wanted(data), reader(), stop_at("harvesting"))
    with pytest.raises(TrainingError, match=r"another model_dtype \(float32, and now bfloat16\)"):
        work(out, wanted(data), reader(make("llama").bfloat16()))


def test_the_device_is_noted(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", wanted(corpus(tmp_path / "data")), reader())
    train_from(settings(tmp_path / "run"), recipe(), [store], reader().sites[0], CPU)
    assert json.loads((tmp_path / "store" / "harvest.json").read_text())["device"] == "cpu"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["device"] == "cpu"


# ------------------------------------------------------------------------------------------------- vectors that are gone


@pytest.mark.parametrize("name", ["training.rows", "held-out.rows"])
def test_kept_vectors_that_were_cut_short_are_not_trained_on(tmp_path: Path, name: str) -> None:
    store = write_store(tmp_path / "store", wanted(corpus(tmp_path / "data")), reader())
    path = tmp_path / "store" / "resid_post.1" / name
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(TrainingError, match=rf"{name} was cut short: it has 3,000 bytes, and [\d,]+ are needed"):
        train_from(settings(tmp_path / "run"), recipe(), [store], reader().sites[0], CPU)
    assert path.stat().st_size == 3000
    path.unlink()
    with pytest.raises(TrainingError, match=f"{name} is missing"):
        train_from(settings(tmp_path / "run2"), recipe(), [store], reader().sites[0], CPU)
    assert not path.exists()


@pytest.mark.parametrize("name", ["pool.rows", "held-out.rows"])
@pytest.mark.parametrize(("doing", "num"), [("harvesting", 20), ("training", 14)])
def test_a_run_does_not_go_on_without_its_vectors(tmp_path: Path, name: str, doing: str, num: int) -> None:
    data, run = corpus(tmp_path / "data"), tmp_path / "run"
    with pytest.raises(Stopped):
        training(run, wanted(data), reader(), stop_at(doing, num))
    assert json.loads((run / "pool.json").read_text())["filled"] > 0
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[:999])
    with pytest.raises(TrainingError, match=f"{name} was cut short: it has 999 bytes"):
        training(run, wanted(data), reader())
    (run / name).unlink()
    with pytest.raises(TrainingError, match=f"{name} is missing"):
        training(run, wanted(data), reader())
    (run / name).write_bytes(content)  # nothing else was removed, so that it can be put back
    training(run, wanted(data), reader())
    training(tmp_path / "whole", wanted(data), reader())
    assert weights(run) == weights(tmp_path / "whole")


def test_a_pool_that_is_behind_its_checkpoint_is_refused(tmp_path: Path) -> None:
    data, run = corpus(tmp_path / "data"), tmp_path / "run"
    with pytest.raises(Stopped):
        training(run, wanted(data), reader(), stop_at("training", 84))
    assert json.loads((run / "pool.json").read_text())["round"] > 1
    for name in ("pool.json", "pool.rows"):
        (run / name).unlink()
    with pytest.raises(TrainingError, match="are not those that its training came to: begin anew in another folder"):
        training(run, wanted(data), reader())


def test_an_interrupted_harvest_does_not_go_on_with_vectors_cut_short(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data")
    with pytest.raises(Stopped):
        write_store(tmp_path / "store", wanted(data), reader(), stop_at("harvesting"))
    path = tmp_path / "store" / "resid_post.1" / "held-out.rows"
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(TrainingError, match="was cut short: it has 10 bytes"):
        write_store(tmp_path / "store", wanted(data), reader())
    assert path.stat().st_size == 10


def test_what_was_trained_is_exported_again_when_its_sae_was_removed(tmp_path: Path) -> None:
    data, run = corpus(tmp_path / "data"), tmp_path / "run"
    first = training(run, wanted(data), reader())
    before, config = weights(run), (run / "sae" / "cfg.json").read_text()
    shutil.rmtree(run / "sae")
    assert training(run, wanted(data), reader()) == first
    assert (weights(run), (run / "sae" / "cfg.json").read_text()) == (before, config)
    assert not list(run.glob("*.rows"))


# ------------------------------------------------------------------------------------------- found before anything long


@pytest.mark.parametrize("work", [training, write_store])
def test_a_bad_line_is_found_before_anything_long_and_leaves_the_folder_free(tmp_path: Path, work: Work) -> None:
    data, out = corpus(tmp_path / "data"), tmp_path / "out"
    good = (data / "b.jsonl").read_text()
    (data / "b.jsonl").write_text(f'{good}\n{{"text": 1}}\n')
    with pytest.raises(TrainingError, match=r"b\.jsonl, line 31 is neither"):
        work(out, wanted(data), reader(), lambda *_: pytest.fail("something long began"))
    assert list(out.iterdir()) == []
    (data / "b.jsonl").write_text(good)
    work(out, wanted(data), reader())


@pytest.mark.parametrize("work", [training, write_store])
def test_a_data_file_that_is_gone_meanwhile_is_named(tmp_path: Path, work: Work) -> None:
    what = wanted(corpus(tmp_path / "data"))
    what.files[-1].unlink()
    with pytest.raises(TrainingError, match=r"b\.jsonl cannot be read: No such file or directory\."):
        work(tmp_path / "out", what, reader())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"held_out_share": 0.0}, "No document was held"), ({"held_out_share": 1 - 1e-9}, "No document is left")],
)
def test_a_harvest_of_one_side_alone_leaves_the_folder_free(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    data = corpus(tmp_path / "data")
    with pytest.raises(TrainingError, match=said):
        write_store(tmp_path / "store", wanted(data, **options), reader())
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("work", [training, write_store])
def test_a_token_beyond_the_vocabulary_leaves_the_folder_free(tmp_path: Path, work: Work) -> None:
    small = make("llama")
    small.resize_token_embeddings(20)  # type: ignore[operator]
    with pytest.raises(SAEError, match="tokenizer is of another model"):
        work(tmp_path / "out", wanted(corpus(tmp_path / "data")), reader(small))
    assert list((tmp_path / "out").iterdir()) == []


def test_more_features_than_the_memory_holds_are_refused_at_once(tmp_path: Path) -> None:
    data, what = corpus(tmp_path / "data"), recipe(d_sae=10**11)
    with pytest.raises(TrainingError, match=r"100,000,000,000 features of width 16, .* take [\d,]+ GB of memory"):
        train(settings(tmp_path / "run"), what, wanted(data), reader())
    assert not (tmp_path / "run").exists()
    store = write_store(tmp_path / "store", wanted(data), reader())
    with pytest.raises(TrainingError, match="of memory, and there are"):
        train_from(settings(tmp_path / "run"), what, [store], reader().sites[0], CPU)


def test_vectors_that_are_not_finite_are_called_damaged(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", wanted(corpus(tmp_path / "data")), reader())
    store.rows(reader().sites[0]).tensor[7] = float("inf")
    with pytest.raises(TrainingError, match="not finite, so they are damaged: harvest them anew"):
        train_from(settings(tmp_path / "run"), recipe(), [store], reader().sites[0], CPU)


def test_a_penalty_that_is_too_large_is_named_when_training_diverges(tmp_path: Path) -> None:
    data, what = corpus(tmp_path / "data"), recipe(architecture="relu", l1=1e308)
    with pytest.raises(TrainingError, match=r"Training diverged, .*: lower --l1 or --lr\."):
        train(settings(tmp_path / "run"), what, wanted(data), reader())


# ----------------------------------------------------------------------------------------------------- what is damaged


@pytest.mark.parametrize("work", [training, write_store])
@pytest.mark.parametrize("out", ["file", "file/below", "/proc/saeclamp"])
def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path, work: Work, out: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot be written: "):
        work(tmp_path / out, wanted(corpus(tmp_path / "data")), reader())


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = corpus(tmp_path / "data"), tmp_path / "run"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("saeclamp_saes.io.vector_files.os.fdatasync", full)
        with pytest.raises(TrainingError, match="run cannot be written: No space left on device"):
            training(run, wanted(data), reader())
    training(run, wanted(data), reader())
    training(tmp_path / "whole", wanted(data), reader())
    assert weights(run) == weights(tmp_path / "whole")


NO_JSON = ["", "{", "[]", "null", "\ud800".encode("utf-8", "surrogatepass")]


def put(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("name", ["run.json", "limits.json", "held-out.json", "pool.json", "checkpoint.safetensors"])
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, name: str) -> None:
    data, run = corpus(tmp_path / "data"), tmp_path / "run"
    with pytest.raises(Stopped):
        training(run, wanted(data), reader(), stop_at("training", 14))
    whole = (run / name).read_bytes()
    also = [whole[:-9]] if name.endswith("safetensors") else ['{"norm_limits": ["x"], "filled": null}']
    for content in [*NO_JSON, *(also if name != "run.json" else [])]:
        put(run / name, content)
        with pytest.raises(TrainingError, match=rf"{name} is damaged, .* begin anew in another folder"):
            training(run, wanted(data), reader())
    (run / name).write_bytes(whole)
    training(run, wanted(data), reader())


def test_a_checkpoint_of_other_sizes_is_damaged(tmp_path: Path) -> None:
    data, run = corpus(tmp_path / "data"), tmp_path / "run"
    with pytest.raises(Stopped):
        training(run, wanted(data), reader(), stop_at("training", 14))
    with pytest.raises(Stopped):
        train(settings(tmp_path / "o"), recipe(d_sae=30), wanted(data), reader(), stop_at("training", 14))
    shutil.copy(tmp_path / "o" / "checkpoint.safetensors", run)
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors is damaged"):
        training(run, wanted(data), reader())


def test_a_damaged_configuration_of_a_finished_run_can_be_made_anew(tmp_path: Path) -> None:
    data, run = corpus(tmp_path / "data"), tmp_path / "run"
    first = training(run, wanted(data), reader())
    for content in [*NO_JSON, "{}", '{"metadata": {"training": []}}']:
        put(run / "sae" / "cfg.json", content)
        with pytest.raises(TrainingError, match=r"cfg\.json is damaged: delete .*sae and start the same command again"):
            training(run, wanted(data), reader())
    shutil.rmtree(run / "sae")
    assert training(run, wanted(data), reader()) == first


@pytest.mark.parametrize("name", ["harvest.json", "complete.json"])
def test_a_damaged_file_of_a_harvest_is_named(tmp_path: Path, name: str) -> None:
    store = write_store(tmp_path / "store", wanted(corpus(tmp_path / "data")), reader())
    for content in [*NO_JSON, "{}"]:
        put(store.folder / name, content)
        with pytest.raises(TrainingError, match=f"{name} is damaged"):
            ActivationsStore.open(store.folder)
