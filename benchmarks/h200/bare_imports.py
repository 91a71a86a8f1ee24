"""
The worker's modules, importable with nothing but torch, Triton and NumPy beside them.

A card that is lent for minutes has neither vLLM nor what the server and its client need. The packages above the worker are
replaced by empty ones, which run no `__init__`, and of vLLM there is what the worker's op and steps are declared with.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
BARE = {
    "saeclamp": "client/saeclamp",
    "saeclamp.types": "client/saeclamp/types",
    "saeclamp_server.steering": "server/saeclamp_server/steering",
    "tests": "tests",
}
"""Packages whose own `__init__` imports more than is there, and their folders; and one that other projects install, too."""
BOUNDS = ROOT / "client/saeclamp/types/base.py"
"""File of the bounds of a request, which the tables are laid out by."""

_library = torch.library.Library("vllm", "FRAGMENT")


def install() -> None:
    """Put the empty packages into their places. Raises RuntimeError where the real ones have been imported already."""
    for name in (*BARE, "vllm"):
        if name in sys.modules:
            raise RuntimeError(f"{name} has been imported already.")
    importlib.import_module("saeclamp_server")
    for name, folder in BARE.items():
        package = ModuleType(name)
        package.__path__ = [str(ROOT / folder)]
        _place(name, package)
    vars(sys.modules["saeclamp.types"]).update(_bounds())
    for name in ("vllm", "vllm.utils", "vllm.utils.torch_utils", "vllm.v1", "vllm.v1.outputs"):
        _place(name, ModuleType(name))
    vars(sys.modules["vllm.utils.torch_utils"])["direct_register_custom_op"] = _register_op
    vars(sys.modules["vllm.v1.outputs"])["AsyncModelRunnerOutput"] = type("AsyncModelRunnerOutput", (), {})


def _place(name: str, module: ModuleType) -> None:
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)


def _bounds() -> dict[str, Any]:
    """Read the constants `MAX_...` of a request's types, whose module cannot be imported without pydantic."""
    return {
        name.id: ast.literal_eval(line.value)
        for line in ast.parse(BOUNDS.read_text()).body
        if isinstance(line, ast.Assign)
        for name in line.targets
        if isinstance(name, ast.Name) and name.id.startswith("MAX_") and isinstance(line.value, ast.Constant)
    }


def _register_op(op_name: str, op_func: Callable[..., None], mutates_args: list[str], fake_impl: Any) -> None:
    """Do what vLLM's `direct_register_custom_op` does, for both kinds of device."""
    _library.define(op_name + torch.library.infer_schema(op_func, mutates_args=mutates_args))
    for kind in ("CPU", "CUDA"):
        _library.impl(op_name, op_func, kind)
    _library._register_fake(op_name, fake_impl)
