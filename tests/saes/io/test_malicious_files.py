"""Files made to harm: every one is refused with a sentence, before it costs memory or runs anything."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from tests.saes.loaders.layouts import saelens
from tests.support.refusals import little_memory, sentence

from saeclamp_saes import Options, read_sae
from saeclamp_saes.errors import OptionError
from saeclamp_saes.io.config import read_config
from saeclamp_saes.io.npz import NpzFile
from saeclamp_saes.io.safetensors import SafetensorsFile
from saeclamp_saes.io.tensors import Tensors
from saeclamp_saes.library.resolve import find_sae

__all__ = ["little_memory"]

pytestmark = pytest.mark.usefixtures("little_memory")


# Safetensors


def safetensors(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


NUMBERS = bytes(16)


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        pytest.param({"W": entry([2, 2], 0, 16)}, bytes(12), "where its header describes", id="cut"),
        pytest.param({"W": entry([2, 2], 0, 16)}, bytes(20), "where its header describes", id="something behind"),
        pytest.param({"W": entry([2, 2], 4, 20)}, bytes(20), "overlap others, or leave a gap", id="gap"),
        pytest.param(
            {"W": entry([2, 2], 0, 16), "V": entry([2, 2], 0, 16)}, NUMBERS, "overlap others", id="the same numbers"
        ),
        pytest.param({"W": entry([2, 2], 16, 0)}, NUMBERS, "does not add up", id="backwards"),
        pytest.param({"W": entry([2, 2], -16, 0)}, NUMBERS, "does not add up", id="before the beginning"),
        pytest.param({"W": entry([1 << 20, 1 << 20], 0, 16)}, NUMBERS, "does not add up", id="4 TiB in 16 bytes"),
        pytest.param({"W": entry([1 << 63, 2], 0, 0)}, b"", "does not add up", id="a product beyond 64 bits"),
        pytest.param({"W": entry([-2, -2], 0, 16)}, NUMBERS, "does not add up", id="negative sizes"),
        pytest.param({"W": entry([2.0, 2], 0, 16)}, NUMBERS, "does not add up", id="a size that is no integer"),
        pytest.param({"W": entry([True, 4], 0, 16)}, NUMBERS, "does not add up", id="a size that is a truth value"),
        pytest.param({"W": entry([2, 2], "0", 16)}, NUMBERS, "does not add up", id="an offset that is a text"),
        pytest.param({"W": [1]}, b"", "does not add up", id="no entry"),
        pytest.param(
            {"W": entry([4, 4], 0, 16, "F8_E4M3")}, NUMBERS, "'W' holds F8_E4M3, which is none of", id="float8"
        ),
        pytest.param({"W": entry([2, 2], 0, 16, ["F32"])}, NUMBERS, "does not add up", id="a type that is a list"),
        pytest.param({"W": entry([4, 0], 0, 0)}, b"", "W has shape (4, 0), which no SAE has.", id="empty"),
        pytest.param({"W": entry([1] * 6, 0, 4)}, bytes(4), "W has shape (1, 1, 1, 1), which no SAE has.", id="6-D"),
        pytest.param({"W\n\x1b[2J": entry([1], 0, 4)}, bytes(4), "name cannot be printed: 'W\\n\\x1b[2J'", id="escape"),
        pytest.param([1, 2], b"", "its header is no JSON object", id="a list"),
        pytest.param(b'{"W": ' + b"[" * 100_000 + b"}", b"", "is not a readable safetensors file", id="deep"),
        pytest.param(b'{"W": ' + b"9" * 5000 + b"}", b"", "is not a readable safetensors file", id="5,000 digits"),
        pytest.param(b"\xff\xfe{}", b"", "is not a readable safetensors file", id="UTF-16"),
        pytest.param(
            json.dumps({"W": entry([4], 0, 16)}).encode()[:-1]
            + b","
            + json.dumps({"W": entry([4], 0, 16)}).encode()[1:],
            NUMBERS,
            "its header says something twice",
            id="a name twice",
        ),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(header: Any, data: bytes, says: str, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "sae.safetensors", header, data)
    assert says in sentence(lambda: SafetensorsFile(path))


@pytest.mark.parametrize("length", [0, 1, 1 << 21, 1 << 40, (1 << 64) - 1])
def test_a_header_is_not_read_beyond_a_megabyte(length: int, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "sae.safetensors", {}, bytes(1 << 22), length)
    assert f"its header would have {length} bytes" in sentence(lambda: SafetensorsFile(path))


def test_a_header_of_many_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sae.safetensors").write_bytes(save({f"{number}": torch.ones(1) for number in range(2000)}))
    assert "holds 2000 tensors; an SAE has a few." in sentence(lambda: SafetensorsFile(tmp_path / "sae.safetensors"))


# Configurations


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        pytest.param("cfg.json", "[" * 200_000, "is not readable JSON", id="deep JSON"),
        pytest.param("cfg.json", '{"d_in": ' + "9" * 5000 + "}", "is not readable JSON", id="5,000 digits"),
        pytest.param("cfg.json", '{"a": "\udcff"}', "is not readable JSON", id="no UTF-8"),
        pytest.param("cfg.json", '{"a": [' + "0," * (1 << 22) + "0]}", "more values than a configuration.", id="many"),
        pytest.param("cfg.json", " " * (1 << 24) + "{}", "is too large for a configuration.", id="long JSON"),
        pytest.param("config.yaml", "a: 1\n" + "#" * (1 << 20), "is too large for a configuration.", id="long YAML"),
        pytest.param("config.yaml", "a: " + "[" * 50_000, "is not readable YAML", id="deep YAML"),
        pytest.param(
            "config.yaml", "a: !!python/object/apply:os.mkdir [it-was-run]", "in line 1: could not", id="object"
        ),
        pytest.param("config.yaml", 'a: !!int ""', "is not readable YAML: IndexError.", id="an integer that is none"),
        pytest.param("config.yaml", "a: 2024-99-99", "is not readable YAML: ValueError.", id="a date that is none"),
        pytest.param("config.yaml", "a: !!set {b, c}", "holds a set, which no configuration needs.", id="set"),
        pytest.param("config.yaml", "a: &x [1]\nb: {<<: {c: 1}}", "merge keys (<<) are not read", id="merge"),
        pytest.param("config.yaml", "a: &x [*x]", "holds more values than a configuration.", id="itself inside"),
        pytest.param("config.yaml", "- 1", "must hold a mapping.", id="list"),
    ],
)
def test_a_configuration_that_harms_is_refused(
    name: str, text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert says in sentence(lambda: read_config(tmp_path / name))
    assert not (tmp_path / "it-was-run").exists()


def test_a_billion_laughs_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    merges = ["m0: &m0 {a: 1}", *(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 10))]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    (tmp_path / "merges.yaml").write_text("\n".join(merges))
    assert "holds more values than a configuration." in sentence(lambda: read_config(tmp_path / "config.yaml"))
    assert "merge keys (<<) are not read" in sentence(lambda: read_config(tmp_path / "merges.yaml"))


def test_an_alias_or_two_is_fine(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: &x [1, 2]\nb: *x\n")
    assert read_config(tmp_path / "config.yaml") == {"a": [1, 2], "b": [1, 2]}


def test_impossible_numbers_count_as_not_given(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text(
        '{"a": NaN, "b": [-Infinity, 1e999, 1.5], "c": {"d": 99999999999999999999, "e": 7}}'
    )
    assert read_config(tmp_path / "cfg.json") == {"a": None, "b": [None, None, 1.5], "c": {"d": None, "e": 7}}


# Paths


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "params.npz", "cfg.json"])
def test_pipes_and_devices_are_never_opened(name: str, tmp_path: Path) -> None:
    read = {".safetensors": SafetensorsFile, ".npz": NpzFile, ".json": read_config}[Path(name).suffix]
    os.mkfifo(tmp_path / name)
    assert sentence(lambda: read(tmp_path / name)) == f"{tmp_path / name} is not a regular file."
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    assert sentence(lambda: read(tmp_path / name)) == f"{tmp_path / name} is not a regular file."
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(name)  # to itself
    assert sentence(lambda: read(tmp_path / name)) == f"{tmp_path} has no {name}."


def test_what_a_link_leads_to_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password: hunter2: [")
    for name in ("cfg.json", "config.yaml"):
        (tmp_path / name).symlink_to(tmp_path / "secret")
        assert "hunter2" not in sentence(lambda name=name: read_config(tmp_path / name))


@pytest.mark.parametrize("name", ["../x", "../../etc", "/etc", "a/b", "a b", "a\tb"])
def test_a_name_is_no_path(name: str, tmp_path: Path) -> None:
    path = saelens.write(tmp_path / "sae").path
    assert "must be non-empty and without" in sentence(lambda: find_sae(f"{name}={path}"))


def test_what_does_not_exist_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    assert "No SAE '../../x'" in sentence(lambda: find_sae("../../x"))
    assert "is not a place on the hub" in sentence(lambda: find_sae("hf://org/repo@main/../../x"))
    assert "is not a place on the hub" in sentence(lambda: find_sae("hf://../repo@main/x"))


@pytest.mark.parametrize("layer", ["../../x", "-1", "1e3", "0x10", "٣", "9" * 5000])
def test_a_layer_is_a_number(layer: str) -> None:
    with pytest.raises(OptionError, match=r"must be a whole number\.$"):
        Options.parse(f"layer={layer}").integer("layer")


# Files that change


@contextmanager
def changed(path: Path, how: str) -> Iterator[None]:
    """Change a file after it was opened."""
    whole = path.read_bytes()
    if how == "cut":
        os.truncate(path, len(whole) // 2)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] + b"\x01")
        os.utime(path, ns=(1, 1))
    yield


@pytest.mark.parametrize("how", ["cut", "gone", "written"])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_that_changes_is_refused(how: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"sae{suffix}"
    if suffix == ".npz":
        np.savez(path, W=np.ones((64, 64), np.float32))
    else:
        save_file({"W": torch.ones(64, 64)}, path)
    tensors: Tensors = NpzFile(path) if suffix == ".npz" else SafetensorsFile(path)
    with changed(path, how):
        says = sentence(lambda: tensors.tensor("W", (64, 64)))
    assert says == (f"{tmp_path} has no {path.name}." if how == "gone" else f"{path} was changed while it was read.")


# Numbers


def test_numbers_that_no_sae_has_are_refused(tmp_path: Path) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            tensor = torch.ones(4, 4, dtype=dtype)
            tensor[3, 3] = value
            save_file({"W": tensor}, tmp_path / "sae.safetensors")
            file = SafetensorsFile(tmp_path / "sae.safetensors")
            assert sentence(lambda file=file: file.tensor("W", (4, 4))).endswith("W holds NaN or infinity.")
            assert sentence(lambda file=file: file.transposed("W", (4, 4))).endswith("W holds NaN or infinity.")
            assert sentence(lambda file=file: file.part("W", 3)).endswith("W holds NaN or infinity.")
            assert file.part("W", 2).tolist() == [1, 1, 1, 1]


def test_what_overflows_single_precision_is_refused(tmp_path: Path) -> None:
    save_file({"W": torch.full((2, 2), 1e39, dtype=torch.float64)}, tmp_path / "sae.safetensors")
    file = SafetensorsFile(tmp_path / "sae.safetensors")
    assert sentence(lambda: file.tensor("W", (2, 2))).endswith("W holds NaN or infinity.")


def test_integers_are_no_weights_also_without_numbers(tmp_path: Path) -> None:
    save_file({"W": torch.ones(2, 2).long()}, tmp_path / "sae.safetensors")
    for shapes_only in (True, False):
        file = SafetensorsFile(tmp_path / "sae.safetensors", shapes_only)
        for read in (file.tensor, file.transposed):
            assert sentence(lambda read=read: read("W", (2, 2))).endswith(
                "W holds torch.int64, not floating-point numbers."
            )


def test_a_matrix_the_other_way_round_is_refused(tmp_path: Path) -> None:
    save_file({"W": torch.ones(4, 8)}, tmp_path / "sae.safetensors")
    file = SafetensorsFile(tmp_path / "sae.safetensors")
    assert sentence(lambda: file.transposed("W", (8, 4))) == (
        f"{file.path}: W has shape (4, 8), expected (8, 4) (stored the other way round)."
    )


def test_factors_that_overflow_are_refused(tmp_path: Path) -> None:
    folder = saelens.write(tmp_path / "sae", architecture="gated").path
    path = folder / "sae_weights.safetensors"
    file = SafetensorsFile(path)
    tensors = {name: file.tensor(name, shape) for name, shape in file.shapes.items()}
    tensors["r_mag"][0] = 1000.0  # exp of it is the gain of a feature
    save_file(tensors, path)
    assert sentence(lambda: read_sae(folder)).endswith(": with its factors folded, W_enc overflows.")
