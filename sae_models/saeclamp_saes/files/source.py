"""An opened checkpoint: which files it has, what they say, and what the user says where they are silent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from saeclamp_saes.errors import CheckpointError, PickledError
from saeclamp_saes.files.config_file import MAX_CONFIG_BYTES as MAX_CONFIG_BYTES
from saeclamp_saes.files.config_file import read_config as read_config
from saeclamp_saes.files.npz_file import NpzFile
from saeclamp_saes.files.safetensors_file import SafetensorsFile
from saeclamp_saes.files.tensors import LoadedTensors, Tensors
from saeclamp_saes.options import Options
from saeclamp_saes.sites import Site

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
READABLE = (".safetensors", ".npz")
BESIDE = {"sparsity.safetensors", "activation_whitening.safetensors", "trainer_state.pt"}
"""Files that stand beside an SAE's weights and are not part of them."""
LABELS = "labels.parquet"
"""What is known of its features; beside an SAE that is one file of several, `NAME.labels.parquet`."""

LAYER = re.compile(
    r"(?<![A-Za-z0-9])(?:[Ll]ayers?[_.-]?|blocks?[_.-]?|SAE-l|L(?!0[_.-]\d)|W_(?:enc|dec)_)(\d{1,4})(?![A-Za-z0-9])"
)
"""A number that is called a layer's. `L0_71` says how many features are active, not which layer it is."""


class Source:
    """A file or folder that holds an SAE."""

    def __init__(
        self,
        path: Path,
        options: Options | None = None,
        *,
        shapes_only: bool = False,
        unpickled: Mapping[Path, Mapping[str, Tensor]] | None = None,
        extras: Mapping[Path, Mapping[str, Any]] | None = None,
    ) -> None:
        """
        Open nothing yet.

        unpickled: tensors that the converter's subprocess has loaded, nested names joined by dots; without it a pickle is
                   refused
        extras:    the numbers, texts and nested mappings of those that it found beside the tensors
        """
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self.options = options or Options()
        self.shapes_only = shapes_only
        self.configs: dict[Path, None] = {}
        """Configurations that were read, in order."""
        self.opened: list[Path] = []
        """Weights files that were opened, in order."""
        self.approximation: str | None = None
        """In what the SAE that is read differs from the trained one, because the user asked for it."""
        self._unpickled = unpickled or {}
        self._extras = extras or {}

    @cached_property
    def weights(self) -> Path:
        """The file with the (first) weights. Raises CheckpointError when there is none, or no telling which."""
        if not self.path.is_dir():
            return self.path
        files = [
            file
            for folder in (self.path, self.path / "checkpoints")
            for file in sorted(folder.glob("*"))
            if file.suffix in READABLE + PICKLES and file.name not in BESIDE
        ]
        # what is readable comes first: a converted file may stand beside its pickle
        readable = [file for file in files if file.suffix in READABLE] or files
        layer = self.options.integer("layer") if len(readable) > 1 else None
        chosen = readable if layer is None else [file for file in readable if layer_of(file.name) == layer]
        chosen = [file for file in chosen if not file.name.startswith("W_dec_")] or chosen
        if not files:
            inside = sorted({file.parent.name for file in self.path.glob("*/*") if file.suffix in READABLE + PICKLES})
            hint = f"; it has folders with such files, so name one: {', '.join(inside[:8])}" if inside else ""
            raise CheckpointError(f"{self.path} has no weights: no file that ends in {', '.join(READABLE)}{hint}.")
        if not chosen:
            raise CheckpointError(f"{self.path} has no weights file for layer {layer}.")
        if len(chosen) > 1:
            names = ", ".join(file.name for file in chosen[:4])
            raise CheckpointError(
                f"{self.path} holds several SAEs ({names} ...): name one file, or choose with ?layer=N."
            )
        return chosen[0]

    @cached_property
    def tensors(self) -> Tensors:
        """What `weights` holds."""
        return self.open(self.weights)

    def open(self, path: Path) -> Tensors:
        """Open a weights file. Raises CheckpointError, for a pickle that was not converted PickledError."""
        self.opened.append(path)
        if path in self._unpickled:
            return LoadedTensors(path, self._unpickled[path], self.shapes_only)
        if path.suffix in PICKLES:
            raise PickledError(
                f"{path} is a pickle, which can run code when it is loaded; convert it once with "
                f"`saeclamp sae convert {path} DESTINATION` and use the result."
            )
        return NpzFile(path, self.shapes_only) if path.suffix == ".npz" else SafetensorsFile(path, self.shapes_only)

    @property
    def extras(self) -> Mapping[str, Any]:
        """What an unpickled primary file holds besides tensors (numbers, texts, nested mappings); else empty."""
        return self._extras.get(self.weights, {})

    def has(self, *names: str) -> bool:
        """Whether the primary file holds all these tensors."""
        return all(name in self.tensors for name in names)

    def config(self, *names: str) -> dict[str, Any] | None:
        """Read the first of these JSON or YAML files that stands beside the weights. None when there is none."""
        for folder in dict.fromkeys((self.weights.parent, self.folder)):
            for name in names:
                if (folder / name).is_file():
                    self.configs[folder / name] = None
                    return read_config(folder / name)
        return None

    def layer(self) -> int | None:
        """Which layer it is of: what the file's name says, else the user. Raises CheckpointError when they disagree."""
        named, given = layer_of(self.weights.name), self.options.integer("layer")
        if named is not None and given not in (None, named):
            raise CheckpointError(f"{self.weights} is named after layer {named}, so ?layer={given} cannot be right.")
        return given if named is None else named

    def site(self, known: Site | None, what: str = "where it reads") -> Site:
        """Where it reads: what the user says, else what the files say. Raises CheckpointError when neither does."""
        return self._site("site", known, what)

    def site_out(self, known: Site | None) -> Site:
        """Where it writes: what the user says, else what the files say. Raises CheckpointError when neither does."""
        return self._site("site_out", known, "where it writes")

    def _site(self, option: str, known: Site | None, what: str) -> Site:
        site = self.options.site(option) or known
        if site is None:
            raise CheckpointError(f"{self.path} does not say {what}: add ?{option}=resid_post.19 (or the like).")
        return site


def layer_of(name: str) -> int | None:
    """
    Find the layer that a file's name states, as in `16k-layer_12.safetensors`, `layer12.sae.pt` or `W_enc_12.safetensors`.

    A bare number is one only if the name has nothing else (`12.pt`): others are widths, versions and models' sizes. None
    also for a name that states several.
    """
    bare = re.fullmatch(rf"(\d{{1,4}})(?:{'|'.join(map(re.escape, READABLE + PICKLES))})?", name)
    stated = {int(match[1]) for match in LAYER.finditer(name)} if bare is None else {int(bare[1])}
    return stated.pop() if len(stated) == 1 else None


def positive_int(config: Mapping[str, Any], key: str, path: Path) -> int:
    """Read a configuration's positive integer. Raises CheckpointError."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{path}: the configuration must give {key} as a positive integer, not {value!r}.")
    return value
