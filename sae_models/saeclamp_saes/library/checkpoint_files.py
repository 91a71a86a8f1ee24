"""
The files of a repository or a folder that make up one SAE: its weights, the configurations that say how they are read, and
its labels, calibration and feature book.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from saeclamp_saes.errors import CheckpointError
from saeclamp_saes.io.checkpoint import LABELS, MAX_CONFIG_BYTES
from saeclamp_saes.io.contents import CHECKPOINTS, PICKLES, READABLE, WHITENING, choose_weights, is_weights, parse_layer
from saeclamp_saes.library.feature_book import GROWING, is_growing_file
from saeclamp_saes.options import Options

CONFIGS = (".json", ".yaml", ".yml")
SEED = re.compile(r"seed\d+")
"""Folder of one of several seeds, which sparsify makes inside the module's; the run's configuration is above that."""
RUN_CONFIGS = ("config.json", "config.yaml", "hyperparams.json")
"""Configurations that some families keep in the folder above an SAE's."""


class CheckpointFiles(NamedTuple):
    """The files of one SAE, as relative paths with '/'."""

    path: str
    """Folder or file to read."""
    weights: tuple[str, ...]
    configs: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Labels, calibration and feature book beside it."""
    chosen_by_layer: bool = False
    """True if the option `layer` chose the file, so that the loader must not get it."""

    @property
    def all(self) -> tuple[str, ...]:
        """Every file; the weights come last, so that where they are, the rest is too."""
        return (*self.configs, *self.notes, *self.weights)

    def options_left(self, options: Options) -> Options:
        """Leave out `layer` where it has chosen the file."""
        return Options(
            {key: value for key, value in options.values.items() if not (self.chosen_by_layer and key == "layer")}
        )

    @property
    def is_pickled(self) -> bool:
        """True if the weights have to be converted first."""
        return self.weights[-1].endswith(PICKLES)


def select_files(sizes: Mapping[str, int], path: str, layer: int | None = None) -> CheckpointFiles:
    """
    Choose the files of the SAE at `path`, a file or a folder ("" for the top).

    sizes: in bytes, by path, of the files that there are
    Raises CheckpointError when there is none, or no telling which.
    """
    is_file = path in sizes
    folder = posixpath.dirname(path) if is_file else path
    weights = [path] if is_file else _weights_in(sizes, folder)
    if not weights:
        if path.endswith(READABLE + PICKLES):
            raise CheckpointError(f"there is no {path}.")
        raise CheckpointError(
            f"{path or 'the top folder'} holds no weights: no file that ends in {', '.join(READABLE + PICKLES)}."
        )
    several = len([name for name in weights if name.endswith(READABLE)] or weights) > 1
    beside = posixpath.dirname(weights[0])
    (chosen,) = choose_weights(map(posixpath.basename, weights), path or "the top folder", layer if several else None)
    head, named = posixpath.join(beside, chosen), parse_layer(chosen)
    if None not in (named, layer) and named != layer:
        raise CheckpointError(f"{head} is named after layer {named}, so ?layer={layer} cannot be right.")
    parts = (chosen.replace("W_enc_", "W_dec_", 1), WHITENING)
    return CheckpointFiles(
        path=head if several else path,
        weights=(*(part for name in parts if (part := posixpath.join(beside, name)) in sizes and part != head), head),
        configs=_configs(sizes, beside, folder),
        notes=_notes(sizes, (beside, folder), head),
        chosen_by_layer=several and layer is not None,
    )


def local_files(path: Path) -> tuple[Path, str, dict[str, int]]:
    """
    List the files around a local SAE: in its folder, in that folder's `checkpoints`, and in the folder above.

    returns: the folder above; the SAE's path relative to it; the files' sizes, by relative path
    """
    path = path.absolute()
    if ".." in path.parts:  # which would lead out of the folder that names are kept in
        path = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
    folder = path if path.is_dir() else path.parent
    root = folder.parent.parent if SEED.fullmatch(folder.name) else folder.parent
    places = dict.fromkeys((root, folder.parent, folder, folder / CHECKPOINTS))
    files = [file for place in places if place.is_dir() for file in place.iterdir()]
    return (
        root,
        path.relative_to(root).as_posix(),
        {file.relative_to(root).as_posix(): file.stat().st_size for file in files if file.is_file()},
    )


def _weights_in(names: Iterable[str], folder: str) -> list[str]:
    for place in (folder, posixpath.join(folder, CHECKPOINTS)):  # beside weights, that is earlier steps' folder
        inside = [name for name in names if posixpath.dirname(name) == place and is_weights(posixpath.basename(name))]
        if inside:
            return sorted(inside)
    return []


def _configs(sizes: Mapping[str, int], beside: str, folder: str) -> tuple[str, ...]:
    above = posixpath.dirname(folder) if folder else None
    if above and SEED.fullmatch(posixpath.basename(folder)):
        above = posixpath.dirname(above)
    return tuple(
        sorted(
            name
            for name, size in sizes.items()
            if name.endswith(CONFIGS)
            and not is_growing_file(posixpath.basename(name))
            and size <= MAX_CONFIG_BYTES
            and (
                posixpath.dirname(name) in (beside, folder)
                or (posixpath.dirname(name) == above and posixpath.basename(name) in RUN_CONFIGS)
            )
        )
    )


def _notes(names: Iterable[str], folders: Iterable[str], head: str) -> tuple[str, ...]:
    own = f"{posixpath.splitext(posixpath.basename(head))[0]}.{LABELS}"
    return tuple(
        sorted(
            name for name in names if posixpath.dirname(name) in folders and posixpath.basename(name) in (*GROWING, own)
        )
    )
