"""Checks of whether an SAE's sites and shapes suit a model, from configurations alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from saeclamp_saes import SAEEntry, Site
from saeclamp_saes.errors import UserError
from saeclamp_server.layer_families import SUPPORTED_ARCHITECTURES

ORDER = (
    ("embed", "resid_pre"),
    ("attn_z",),
    ("attn_out", "attn_out_raw"),
    ("resid_mid",),
    ("mlp_in", "mlp_in_no_gain"),
    ("mlp_out", "mlp_out_raw"),
    ("resid_post",),
)
"""Points of a layer as the forward pass reaches them."""


class StartupError(UserError):
    """The server cannot start; the message is one sentence for the terminal."""


def in_one_line(message: str) -> str:
    """Shorten another library's message to the line that says what is wrong; pydantic's says first how many things are."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    is_counted = len(lines) > 1 and "validation error" in lines[0]
    said = next((line for line in lines[1:] if " [type=" in line), lines[-1]) if is_counted else (lines or [""])[0]
    before = f"{lines[0].partition(': ')[0]}: " if is_counted and lines[0].startswith("argument ") else ""
    return before + said.partition(" [type=")[0].removeprefix("Value error, ").rstrip(".")


@dataclass(frozen=True)
class ModelInfo:
    """The facts of a model's configuration that steering needs."""

    path: str
    """Folder or hub name that vLLM is to load."""
    architecture: str
    """One of `SUPPORTED_ARCHITECTURES`."""
    hidden_size: int
    num_layers: int
    z_width: int
    """Width of all attention heads' outputs side by side."""
    is_float16: bool
    """True if the checkpoint is stored in float16, which vLLM's `--dtype auto` would keep."""

    def width(self, site: Site) -> int:
        """Return the width of the vectors at a site."""
        return self.z_width if site.point == "attn_z" else self.hidden_size


def check_compatible(saes: Mapping[str, SAEEntry], model: ModelInfo) -> None:
    """Raise StartupError unless every SAE can be steered on this model."""
    for name, entry in saes.items():
        _check_kind(name, entry)
        summary = entry.summary
        for site in (*summary.reads, *summary.writes):
            if site.layer >= model.num_layers:
                raise StartupError(f"SAE {name!r} sits at {site}; {model.path} has layers 0 to {model.num_layers - 1}.")
            if site.point not in (points := SUPPORTED_ARCHITECTURES[model.architecture].points):
                raise StartupError(
                    f"SAE {name!r} sits at {site}, where a {model.architecture} cannot be steered; it can at "
                    f"{', '.join(points)}."
                )
        _check_width(name, "reads", summary.reads, summary.d_in, model)
        _check_width(name, "writes", summary.writes, summary.d_out, model)
        _check_order(name, summary.reads[0], summary.writes)


def _check_kind(name: str, entry: SAEEntry) -> None:
    if len(entry.summary.reads) != 1:
        raise StartupError(
            f"SAE {name!r} is a crosscoder: its activations are read from {len(entry.summary.reads)} places or models "
            "at once, which one forward pass cannot do before it writes; it cannot be served."
        )


def _check_width(name: str, what: str, sites: tuple[Site, ...], found: int, model: ModelInfo) -> None:
    expected = sum(model.width(site) for site in sites)
    if found != expected:
        where = " and ".join(map(str, sites[:3]))
        raise StartupError(
            f"SAE {name!r} {what} vectors of width {found} at {where}; {model.path} has width {expected}."
        )


def _check_order(name: str, read: Site, writes: tuple[Site, ...]) -> None:
    for write in writes:
        if write.point == "mlp_in_no_gain":
            raise StartupError(
                f"SAE {name!r} writes to {write}, a vector that the model never holds; it cannot be served."
            )
        if _position(write) < _position(read):
            raise StartupError(
                f"SAE {name!r} reads {read} and writes to {write}, which comes before; it cannot be served."
            )


def _position(site: Site) -> tuple[int, int]:
    return site.layer, next(number for number, points in enumerate(ORDER) if site.point in points)
