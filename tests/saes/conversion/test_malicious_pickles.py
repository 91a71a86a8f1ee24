"""Pickles made to harm: whatever torch lets pass is looked at before anything is computed with it."""

from __future__ import annotations

import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tests.saes.loaders.layouts import goodfire
from tests.support.refusals import little_memory, sentence

from saeclamp_saes import read_sae
from saeclamp_saes.conversion.pickles import unpickle
from saeclamp_saes.errors import CheckpointError, PickledError
from saeclamp_saes.loaders import summarize

__all__ = ["little_memory"]

pytestmark = pytest.mark.usefixtures("little_memory")


def pickled(path: Path, content: Any) -> Path:
    # to name what says no module of its own, pickle asks all that are loaded, and transformers imports more to answer
    with mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
            del sys.modules[name]
        torch.save(content, path)
    return path


def in_one_storage(count: int) -> dict[str, torch.Tensor]:
    whole = torch.ones(1000)
    return {f"W_{number}": whole[:] for number in range(count)}


def nested(depth: int, width: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] * width
    return value


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of the types it does not like itself
@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(
            {"W": torch.ones(1).expand(1 << 20, 1 << 20)}, f": W declares {4 << 40} bytes and holds 4.", id="stride 0"
        ),
        pytest.param(
            lambda: {"W": torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (1 << 20, 1 << 20))},
            ": W is not a dense tensor (Tensor, torch.sparse_coo).",
            id="sparse COO",
        ),
        pytest.param(
            lambda: {"W": torch.eye(8).to_sparse_csr()},
            ": W is not a dense tensor (Tensor, torch.sparse_csr).",
            id="CSR",
        ),
        pytest.param(
            lambda: {"W": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
            ": W is not a dense tensor",
            id="nested",
        ),
        pytest.param({"W": torch.empty(1 << 20, 1 << 20, device="meta")}, ": W is on the meta device", id="meta"),
        pytest.param({"W": torch.ones(4, 4).to(torch.float8_e4m3fn)}, ": W holds torch.float8_e4m3fn", id="float8"),
        pytest.param({"W": torch.ones(4, 4, dtype=torch.complex64)}, ": W holds torch.complex64", id="complex"),
        pytest.param({"W": torch.ones(4, 4).long()}, ": W holds torch.int64, not numbers", id="integer matrix"),
        pytest.param(
            lambda: {"W": torch.quantize_per_tensor(torch.ones(4), 1.0, 0, torch.qint8)},
            ": W holds torch.qint8",
            id="quantised",
        ),
        pytest.param(in_one_storage(500), "bytes and declares tensors of 2000000.", id="one storage shared"),
        pytest.param({f"{i}": torch.ones(1) for i in range(1025)}, "holds 1025 tensors; an SAE has a few.", id="many"),
        pytest.param({"W": torch.ones(1, 1, 1, 1)}, ": W has shape (1, 1, 1, 1), which no SAE has.", id="4-D"),
        pytest.param({"W": torch.ones(4, 0)}, ": W has shape (4, 0), which no SAE has.", id="empty"),
        pytest.param({"W": torch.tensor([1.0, torch.nan])}, ": W holds NaN or infinity.", id="NaN"),
        pytest.param({"W": torch.tensor([1.0, torch.inf]).half()}, ": W holds NaN or infinity.", id="infinity"),
        pytest.param({"W\x1b[2J": torch.ones(1)}, "a tensor whose name cannot be printed: 'W\\x1b[2J'.", id="escape"),
        pytest.param({(1, 2): torch.ones(1)}, "names something by a tuple, not by a text.", id="a name that is none"),
        pytest.param({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, "names the tensor a.b twice.", id="twice"),
        pytest.param({"W": [torch.ones(1)]}, ": W. is a Tensor, neither a tensor nor", id="tensors in a list"),
        pytest.param({"cfg": nested(8, 64)}, "holds more values beside its tensors than an SAE has.", id="references"),
        pytest.param({"cfg": nested(300, 1)}, "holds more values beside its tensors than an SAE has.", id="deep"),
        pytest.param(torch.ones(3), "holds a Tensor where names with tensors are expected.", id="no names"),
        pytest.param([torch.ones(3)], "holds a list where names with tensors are expected.", id="a list"),
        pytest.param({"x": 1 + 2j}, ": x is a complex, neither a tensor nor a plain value.", id="complex number"),
    ],
)
def test_a_pickle_of_what_no_sae_holds_is_refused(content: Any, says: str, tmp_path: Path) -> None:
    path = pickled(tmp_path / "sae.pt", content() if callable(content) else content)
    assert path.stat().st_size < 1 << 20
    assert says in sentence(lambda: unpickle(path))


def test_the_published_bombs_are_small_files(tmp_path: Path) -> None:
    path = pickled(tmp_path / "sae.pt", {"W": torch.ones(1).expand(1 << 20, 1 << 20)})
    assert path.stat().st_size < 2000
    assert torch.load(path, weights_only=True)["W"].shape == (1 << 20, 1 << 20)  # torch itself lets it pass


def test_what_stands_beside_the_tensors_is_kept_as_plain_values(tmp_path: Path) -> None:
    content = OrderedDict(
        W=torch.ones(2, 2).T,
        k=torch.tensor(3),
        group_sizes=torch.tensor([1, 2]),
        cfg={"k": 32, "lr": float("inf"), "big": 1 << 64, "dtype": torch.float32, "sizes": (1, 2), "T": torch.ones(2)},
        name="x",
        nothing=None,
    )
    tensors, extras = unpickle(pickled(tmp_path / "sae.pt", content))
    assert sorted(tensors) == ["W", "cfg.T", "group_sizes", "k"]
    cfg = {"k": 32, "lr": None, "big": None, "dtype": "torch.float32", "sizes": [1, 2]}
    assert extras == {"cfg": cfg, "name": "x", "nothing": None}


def test_a_run_to_resume_gives_its_sae(tmp_path: Path) -> None:
    state = {0: {"step": torch.tensor(1.0)}}
    content = {"ae": {"W": torch.ones(2, 2)}, "optimizer": {"state": state, "param_groups": [{"lr": 1e-3}]}}
    tensors, extras = unpickle(pickled(tmp_path / "sae.pt", {**content, "norm_factor": 2.0}))
    assert (list(tensors), extras) == (["ae.W"], {"ae": {}, "norm_factor": 2.0})


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path, packed = pickled(tmp_path / "sae.pt", {"W": torch.zeros(1000)}), tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))
    assert "was compressed after it was saved" in sentence(lambda: unpickle(packed))


@pytest.mark.parametrize("keep", [0, 3, 100, 2000, 4300])
def test_a_cut_pickle_is_refused(keep: int, tmp_path: Path) -> None:
    path = pickled(tmp_path / "sae.pt", {"W": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((CheckpointError, EOFError)):  # an EOFError is put into a sentence by the sandbox
        unpickle(path)


@pytest.mark.parametrize("name", ["sae.pt", "sae.pth", "sae.bin", "sae.pkl", "sae.ckpt"])
def test_a_pickle_is_never_loaded_by_a_reader(name: str, tmp_path: Path) -> None:
    path = goodfire.write(tmp_path / "published").path.rename(tmp_path / name)
    for act in (read_sae, summarize):
        with pytest.raises(PickledError) as raised:
            act(path)
        assert f"`saeclamp sae convert {path} DESTINATION`" in str(raised.value)


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "params.npz"])
@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_by_another_name_is_not_loaded(name: str, as_zip: bool, tmp_path: Path) -> None:
    torch.save({"W_enc": torch.ones(2, 2)}, tmp_path / name, _use_new_zipfile_serialization=as_zip)
    assert "is not a rea" in sentence(lambda: read_sae(tmp_path / name))
