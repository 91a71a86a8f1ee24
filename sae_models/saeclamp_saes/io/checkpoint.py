"""An opened checkpoint: its weights, its configurations, and the user's options where these are silent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from saeclamp_saes.errors import CheckpointError, PickledError
from saeclamp_saes.io.config import MAX_CONFIG_BYTES as MAX_CONFIG_BYTES
from saeclamp_saes.io.config import read_config as read_config
from saeclamp_saes.io.contents import CHECKPOINTS, choose_weights, is_weights, parse_layer
from saeclamp_saes.io.contents import PICKLES as PICKLES
from saeclamp_saes.io.contents import READABLE as READABLE
from saeclamp_saes.io.npz import NpzFile
from saeclamp_saes.io.safetensors import SafetensorsFile
from saeclamp_saes.io.tensors import LoadedTensors, Tensors
from saeclamp_saes.options import Options
from saeclamp_saes.sites import Site

LABELS = "labels.parquet"
"""Name of the file of labels; `NAME.labels.parquet` beside an SAE that is one file of several."""


BACKUP = "ae"
"""Name under which dictionary_learning keeps the SAE in a run to resume."""
TRAINER_STATE = {"step", "steps", "global_step", "epoch", "optimizer", "scheduler", "lr_scheduler"}
"""Names, in a pickle beside the tensors, of state that a trainer resumes from and no activation depends on."""


class CheckpointSource:
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

        unpickled: by file, tensors that the converter's subprocess has loaded, nested names joined by dots; without it a
                   pickle is refused
        extras:    by file, the numbers, texts and nested mappings that it found beside the tensors
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
        """Difference between the SAE that is read and the trained one, where the user asked for one."""
        self.unit_note: str | None = None
        """Note on the units in which the family's own code gives activations, if in others than here."""
        self.context_size: Any = None
        """Tokens of the texts that it was trained on, as the checkpoint says; not checked."""
        self._unpickled = unpickled or {}
        self._extras = extras or {}
        self._used_extras: set[str] = set()

    @cached_property
    def weights(self) -> Path:
        """The file with the (first) weights. Raises CheckpointError when there is none, or no telling which."""
        if not self.path.is_dir():
            return self.path
        for folder in (self.path, self.path / CHECKPOINTS):  # with weights beside it, that is earlier steps' folder
            if names := [file.name for file in folder.glob("*") if is_weights(file.name)]:
                layer = self.options.integer("layer") if len(names) > 1 else None
                return folder / choose_weights(names, self.path, layer)[0]
        inside = folders_with_weights(self.path)
        layer = self.options.integer("layer") if len(inside) > 1 else None
        chosen = [name for name in inside if layer is not None and parse_layer(name) == layer]
        if len(chosen) == 1:
            return CheckpointSource(self.path / chosen[0]).weights
        listed = ", ".join((chosen or inside)[:8])
        hint = f"; it has folders with such files, so name one: {listed}" if inside else ""
        raise CheckpointError(f"{self.path} has no weights: no file that ends in {', '.join(READABLE)}{hint}.")

    @cached_property
    def tensors(self) -> Tensors:
        """The tensors in `weights`."""
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

    def extra(self, name: str) -> Any:
        """Read a number, text or mapping that an unpickled primary file holds beside its tensors; None if there is none."""
        self._used_extras.add(name)
        return self._extras.get(self.weights, {}).get(name)

    def check_extras(self) -> None:
        """Raise CheckpointError for a value beside the tensors that no loader has asked for: it may change their meaning."""
        held = self._extras.get(self.weights, {})
        unknown = [name for name in held if held[name] not in (None, {}, []) and name not in self._used_extras]
        unknown = [name for name in unknown if name not in TRAINER_STATE]
        if unknown:
            raise CheckpointError(
                f"{self.weights} holds {', '.join(unknown[:4])} beside its tensors, whose meaning is not known: save the "
                "tensors alone if they are the whole SAE."
            )

    def has(self, *names: str) -> bool:
        """Tell whether the primary file holds all these tensors."""
        return all(name in self.tensors for name in names)

    def config(self, *names: str) -> dict[str, Any] | None:
        """Read the first of these JSON or YAML files that stands beside the weights, or above their `checkpoints`."""
        beside = self.weights.parent
        above = (beside.parent,) if beside.name == CHECKPOINTS else ()
        for folder in dict.fromkeys((beside, self.folder, *above)):
            for name in names:
                if (folder / name).is_file():
                    self.configs[folder / name] = None
                    return read_config(folder / name)
        return None

    def layer(self) -> int | None:
        """Find its layer: from the file's name, else from the user. Raises CheckpointError when they disagree."""
        named, given = parse_layer(self.weights.name), self.options.integer("layer")
        if named is not None and given not in (None, named):
            raise CheckpointError(f"{self.weights} is named after layer {named}, so ?layer={given} cannot be right.")
        return given if named is None else named

    def site(self, known: Site | None, hook: object = None, what: str = "where it reads") -> Site:
        """
        Find the site it reads: the user's, else the files'. Raises CheckpointError when neither says.

        known: the site that the files say; None if they say none, or one that is not known
        hook:  what the files call it, for the error
        """
        return self._site("site", known, hook, what)

    def site_out(self, known: Site | None, hook: object = None) -> Site:
        """Find the site it writes to: the user's, else the files'. Raises CheckpointError when neither says."""
        return self._site("site_out", known, hook, "where it writes")

    def sites(self, option: str, hooks: Sequence[str], known: Sequence[Site | None]) -> tuple[Site, ...]:
        """
        Find several sites side by side: the user's for the first, the others as many layers from it as their hooks are.

        Raises CheckpointError when neither user nor files say.
        """
        numbers = [int(match[1]) for hook in hooks if (match := re.search(r"\.(\d{1,4})\.", hook))]
        first = self.options.site(option)
        if first is not None and len(numbers) == len(hooks) and min(numbers) == numbers[0]:
            return tuple(Site.canonical(first.point, first.layer + number - numbers[0]) for number in numbers)
        unknown = next((hook for hook, site in zip(hooks, known, strict=True) if site is None), None)
        return tuple(self._site(option, site, unknown, "where it reads or writes") for site in known)

    def _site(self, option: str, known: Site | None, hook: object, what: str) -> Site:
        site = self.options.site(option) or known
        if site is not None:
            return site
        hint = f"add ?{option}=resid_post.19 (or the like)"
        if hook is None:
            raise CheckpointError(f"{self.path} does not say {what}: {hint}.")
        raise CheckpointError(f"{self.folder}: hook {hook!r} is no known place: {hint}.")


def folders_with_weights(path: Path) -> list[str]:
    """List the folders of a training run: one for each SAE, or one for each of its seeds, as sparsify makes them."""
    files = (file for pattern in ("*/*", "*/seed*/*") for file in path.glob(pattern) if is_weights(file.name))
    return sorted({file.parent.relative_to(path).as_posix() for file in files})


def positive_int(config: Mapping[str, Any], key: str, path: Path) -> int:
    """Read a configuration's positive integer. Raises CheckpointError."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{path}: the configuration must give {key} as a positive integer, not {value!r}.")
    return value
