"""A safetensors file becomes a direction, or is refused by the name of what is wrong with it."""

from __future__ import annotations

import io
import json
import pickle
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from tests.support.vector_files import SAID, WIDTH, file, numbers

from saeclamp_saes import Site
from saeclamp_server.errors import InvalidVectorError
from saeclamp_server.vectors import SteeringVector


def without(key: str) -> bytes:
    return save({"v": numbers()}, metadata={name: value for name, value in SAID.items() if name != key})


def raw(header: Any, data: bytes = b"\0" * 4 * WIDTH) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [WIDTH], "data_offsets": [0, 4 * WIDTH]}


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"v": numbers()}, buffer)
    return buffer.getvalue()


def with_number(value: float) -> bytes:
    changed = numbers()
    changed[5] = value
    return file(changed)


REFUSED = {
    "no layer": (without("layer"), "metadata.layer", "'layer' is missing; required are layer, site, sign, source"),
    "no site": (without("site"), "metadata.site", "'site' is missing"),
    "no sign": (without("sign"), "metadata.sign", "'sign' is missing"),
    "no source": (without("source"), "metadata.source", "'source' is missing"),
    "no metadata": (save({"v": numbers()}), "metadata.layer", "is missing"),
    "unknown key": (file(sgin="+1"), "metadata.sgin", "Did you mean 'sign'?"),
    "format": (file(format="pt"), "metadata.format", "'format' is not known"),
    "layer of words": (file(layer="three"), "metadata.layer", "the number of a layer, such as '12'"),
    "negative layer": (file(layer="-1"), "metadata.layer", "the number of a layer"),
    "layer of other digits": (file(layer="٣"), "metadata.layer", "the number of a layer"),
    "unknown site": (file(site="resid"), "metadata.site", "points: embed, resid_pre"),
    "a hook's name": (file(site="blocks.3.hook_resid_post"), "metadata.site", "do not make a site"),
    "two layers": (file(site="resid_post.4"), "metadata.layer", "'layer' is '3', and 'site' is 'resid_post.4'"),
    "embedding of a layer": (file(site="embed"), "metadata.site", "do not make a site"),
    "sign of words": (file(sign="positive"), "metadata.sign", "'+1' or '-1': which way leads to the concept?"),
    "sign without +": (file(sign="1"), "metadata.sign", "'+1' or '-1'"),
    "empty source": (file(source=" "), "metadata.source", "where the vector comes from"),
    "long source": (file(source="x" * 2001), "metadata.source", "1 to 2000 characters"),
    "metadata that is no text": (raw({"v": ENTRY, "__metadata__": {**SAID, "layer": 3}}), "metadata.layer", "a string"),
    "metadata that is no object": (raw({"v": ENTRY, "__metadata__": 3}), "body", "its metadata is no JSON object"),
    "a bias of words": (file(bias="none"), "metadata.bias", "is 'none'; it must be a number"),
    "a bias that is not finite": (file(bias="nan"), "metadata.bias", "must be a number"),
    "an infinite bias": (file(bias="1e400"), "metadata.bias", "up to 1e+09 is allowed"),
    "a bias in other digits": (file(bias="٣"), "metadata.bias", "must be a number"),
    "a long bias": (file(bias="1" * 41), "metadata.bias", "must be a number"),
    "two tensors": (save({"v": numbers(), "w": numbers(1)}, metadata=SAID), "body", "one tensor; it holds 2"),
    "no tensor": (raw({"__metadata__": SAID}, b""), "body", "one tensor; it holds 0"),
    "a matrix": (file(torch.ones(2, 4)), "body", "has shape (2, 4); a vector has one dimension"),
    "a number": (file(torch.ones(())), "body", "one dimension"),
    "an empty vector": (file(torch.ones(0)), "body", "one dimension"),
    "integers": (file(torch.ones(WIDTH, dtype=torch.int64)), "body", "int64; a vector is one of float32, float16, bfl"),
    "double": (file(torch.ones(WIDTH, dtype=torch.float64)), "body", "holds float64"),
    "NaN": (with_number(float("nan")), "body", "NaN or infinity"),
    "infinity": (with_number(float("-inf")), "body", "NaN or infinity"),
    "zero": (file(torch.zeros(WIDTH)), "body", "is zero"),
    "too long": (file(numbers() * 1e12), "body", "from 1e-09 to 1e+09 is allowed. Scale it"),
    "too short": (file(numbers() * 1e-15), "body", "from 1e-09"),
    "a wrong checksum": (file(sha256="0" * 64), "metadata.sha256", "the file is damaged"),
    "torch.save": (torch_file(), "body", "is a pickle, as torch.save writes it, and is never loaded"),
    "a pickle": (pickle.dumps(numbers()), "body", "is a pickle"),
    "nothing": (b"", "body", "not a readable safetensors file"),
    "text": (b"a vector, please", "body", "not a readable safetensors file"),
    "cut off": (file()[:-4], "body", "its header describes"),
    "trailing bytes": (file() + b"\0", "body", "its header describes"),
    "a key twice": (raw(b'{"v": {}, "v": {}}'), "body", "says something twice"),
    "a lying header": (raw({"v": {**ENTRY, "shape": [WIDTH + 1]}, "__metadata__": SAID}), "body", "does not add up"),
    "quantised": (raw({"v": {**ENTRY, "dtype": "F8_E4M3"}, "__metadata__": SAID}), "body", "F8_E4M3"),
}


@pytest.mark.parametrize(("data", "param", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_vector_is_refused(data: bytes, param: str, says: str) -> None:
    with pytest.raises(InvalidVectorError) as raised:
        SteeringVector.parse(data)
    assert raised.value.param == param
    assert says in raised.value.message


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda data: raw(data, b"")))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(InvalidVectorError):
        SteeringVector.parse(data)


@given(st.integers(0, len(file()) - 1), st.integers(1, 255))
def test_a_kept_file_with_a_changed_byte_is_refused_or_says_the_same(at: int, change: int) -> None:
    kept = SteeringVector.parse(file())
    data = bytearray(kept.to_bytes())
    data[at % len(data)] ^= change
    with suppress(InvalidVectorError):
        assert SteeringVector.parse(bytes(data)).sha256 == kept.sha256


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_vector_is_read_exactly(dtype: torch.dtype) -> None:
    direction = SteeringVector.parse(file(numbers().to(dtype), sign="-1"))
    assert direction.site == Site("resid_post", 3)
    assert direction.source == "means of 40 prompts"
    assert torch.equal(direction.signed(), -numbers().to(dtype).float())
    assert direction.norm == pytest.approx(float(numbers().to(dtype).double().norm()))


@pytest.mark.parametrize(
    ("site", "layer", "means"),
    [
        ("resid_post", "3", "resid_post 3"),
        ("resid_post.3", "3", "resid_post 3"),
        ("resid_post 3", "03", "resid_post 3"),
        ("resid_pre", "4", "resid_post 3"),
        ("embed", "0", "embed 0"),
        ("attn_z", "11", "attn_z 11"),
    ],
)
def test_a_site_may_be_written_with_its_layer(site: str, layer: str, means: str) -> None:
    assert str(SteeringVector.parse(file(site=site, layer=layer)).site) == means


def test_the_hash_is_of_what_is_meant_and_not_of_how_it_is_stored() -> None:
    halves = numbers().to(torch.float16)
    same = {
        SteeringVector.parse(data).sha256
        for data in (file(halves), file(halves.float()), file(halves, site="resid_pre", layer="4"))
    }
    assert len(same) == 1
    others = {
        SteeringVector.parse(data).sha256
        for data in (
            file(halves),
            file(-halves),
            file(halves, sign="-1"),
            file(halves, source="x"),
            file(halves, layer="4"),
            file(halves, bias="0"),
            file(halves, bias="-1.5"),
        )
    }
    assert len(others) == 7
    assert SteeringVector.parse(file(halves, bias="-1.5e0")).sha256 in others


def test_what_is_written_is_read_again() -> None:
    direction = SteeringVector.parse(file(site="resid_mid", sign="-1", bias="0.1"))
    again = SteeringVector.parse(direction.to_bytes())
    assert again.sha256 == direction.sha256
    assert (again.site, again.sign, again.source) == (direction.site, direction.sign, direction.source)
    assert again.bias == 0.1
    assert SteeringVector.parse(file()).bias is None
