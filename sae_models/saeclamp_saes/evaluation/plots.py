"""Two plots for a paper: densities of features, and sizes of activations. No window, and no global state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from saeclamp_saes.errors import VerificationError
from saeclamp_saes.evaluation.histograms import ACTIVATION_BINS, DENSITY_BINS, Histogram
from saeclamp_saes.evaluation.measurement import FREQUENT_SHARE, DensitySummary, Measurement
from saeclamp_saes.evaluation.metrics import DENSE_SHARE

DENSITY_FILE, ACTIVATIONS_FILE = "density.png", "activations.png"
WIDTH, HEIGHT, DPI = 6.4, 3.9, 200
"""Size of a plot in inches, and pixels an inch."""
LEFT, RIGHT, BOTTOM, TOP, LINE = 0.7, 0.28, 0.5, 0.64, 0.19
"""Margins in inches, and the height that each further SAE adds to the one on top."""
NEVER, GAP = 0.42, 0.12
"""Inches: width of the bars of features that are never active, and of the gap beside them."""
ROW = 0.07
"""Share of the height that is kept above the highest bar for each name beside a line."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours: the colour-blind can tell them apart, and dashes do in print."""
FILLED = 0.75
DASHES = ("-", "--", "-.", ":")
GREY = "#555555"
SMALL = 8.5
LONGEST_NAME = 32
STYLE = {
    "text.parse_math": False,  # a name may hold "$"
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
}

Draw = Callable[[Sequence[Measurement]], Any]
"""Draws a Figure of matplotlib."""


def check_matplotlib() -> None:
    """Raise VerificationError, before anything is measured, where plots cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise VerificationError("Plots are drawn with matplotlib, which is not installed here.") from None


def write_plots(folder: Path, measurements: Sequence[Measurement]) -> list[Path]:
    """
    Write `density.png` and `activations.png`, of one SAE, or of several as lines in one plot.

    Raises VerificationError where the folder cannot be written to.
    """
    from matplotlib import style

    plots: dict[str, Draw] = {DENSITY_FILE: density_figure, ACTIVATIONS_FILE: activations_figure}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in plots.items():
            # whatever the user's own matplotlib looks like, and it looks so again afterwards
            with style.context(["default", STYLE]):
                draw(measurements).savefig(folder / name, dpi=DPI)
    except OSError as exc:
        raise VerificationError(f"The plots cannot be written to {folder}: {exc.strerror}.") from None
    return [folder / name for name in plots]


def density_figure(measurements: Sequence[Measurement]) -> Any:
    """Draw the histogram of features by density. Those that are never active stand apart, on the left."""
    densities = [one.densities for one in measurements]
    figure, add_axes = _figure(len(measurements))
    never = add_axes(0.0, NEVER)
    axes = add_axes(NEVER + GAP, sharey=never)
    scales = _scales([one.d_sae for one in measurements])
    for index, (one, scale) in enumerate(zip(densities, scales, strict=True)):
        never.bar(index, one.num_never * scale, width=0.7, color=_colour(index), alpha=FILLED)
    never.set_xlim(-0.8, len(measurements) - 0.2)
    never.set_xticks([(len(measurements) - 1) / 2], ["never"])
    never.tick_params(axis="x", length=0)
    never.set_ylabel(_per_bin(measurements, "features", DENSITY_BINS))
    lines = _draw(axes, [one.histogram for one in densities], scales)
    # with the 1 % line, even if all features are denser; and apart from what stands on the left
    lowest = min([FREQUENT_SHARE, *(edge for one in densities for edge in one.histogram.edges[:1])])
    axes.set_xlim(lowest / 1.4, 1.0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.set_xlabel("density: share of the tokens on which a feature is active")
    axes.tick_params(axis="y", which="both", left=False, labelleft=False)
    axes.spines["left"].set_visible(False)
    _mark_densities(axes, densities)
    said = [f"{one.num_never:,} never active" for one in densities]
    if len(measurements) > 1:
        said = [f"{words} · median {_percent(one.median)}" for words, one in zip(said, densities, strict=True)]
    _head(figure, "Feature densities", measurements, lines, said)
    return figure


def activations_figure(measurements: Sequence[Measurement]) -> Any:
    """Draw the histogram of the positive activations of all features."""
    from matplotlib.ticker import LogLocator, NullFormatter

    acts = [one.activations for one in measurements]
    figure, add_axes = _figure(len(measurements))
    axes = add_axes(0.0)
    lines = _draw(axes, [one.histogram for one in acts], _scales([one.num for one in acts]))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    units = {"native": "in the SAE's own units", "decoder_norm": "as a length along the feature's direction"}
    axes.set_xlabel(f"activation, {' or '.join(dict.fromkeys(units[one.unit] for one in acts))}")
    axes.set_ylabel(_per_bin(measurements, "activations", ACTIVATION_BINS))
    if len(measurements) == 1:
        _make_room(axes, 2)
        for row, (percent, name) in enumerate({"99.9": "99.9th percentile", "50": "median"}.items()):
            if (value := acts[0].percentiles.get(percent)) is not None:
                _mark(axes, value, f"{name} {value:.3g}", row, dashes="-" if percent == "50" else ":")
    said = [f"{one.l0_mean:.1f} active a token · largest {one.activations.largest or 0:.3g}" for one in measurements]
    _head(figure, "Positive activations", measurements, lines, said)
    return figure


def _figure(num_saes: int) -> tuple[Any, Callable[..., Any]]:
    """Make an empty figure, and a function that adds axes to it: at so many inches, and so many wide (None: the rest)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    top = TOP + LINE * (num_saes - 1)
    height = HEIGHT + LINE * (num_saes - 1)
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)

    def add_axes(start: float, width: float | None = None, **options: Any) -> Any:
        inches = width or WIDTH - LEFT - RIGHT - start
        rect = ((LEFT + start) / WIDTH, BOTTOM / height, inches / WIDTH, (height - BOTTOM - top) / height)
        axes = figure.add_axes(rect, **options)
        axes.yaxis.set_major_formatter(lambda value, _: _short_number(value) if num_saes == 1 else f"{100 * value:g}%")
        return axes

    return figure, add_axes


def _draw(axes: Any, histograms: Sequence[Histogram], scales: Sequence[float]) -> list[Any]:
    """Draw one SAE's counts as a filled shape, several SAEs' shares as lines."""
    axes.set_xscale("log")
    drawn = []
    for index, (histogram, scale) in enumerate(zip(histograms, scales, strict=True)):
        look: dict[str, Any] = {"linestyle": DASHES[index % len(DASHES)], "linewidth": 1.4}
        if len(histograms) == 1:
            look = {"fill": True, "alpha": FILLED}
        # no bin at all is drawn as an empty one
        heights, edges = [count * scale for count in histogram.counts] or [0.0], histogram.edges or (0.5, 1.0)
        drawn.append(axes.stairs(heights, edges, color=_colour(index), **look))
    return drawn


def _scales(whole: Sequence[int]) -> list[float]:
    """Return the factors of the counts: 1 for a single SAE, and shares where several are compared."""
    return [1.0] if len(whole) == 1 else [1 / max(1, num) for num in whole]


def _per_bin(measurements: Sequence[Measurement], things: str, bins: int) -> str:
    return f"{things if len(measurements) == 1 else f'share of the {things}'} per bin (1/{bins} decade)"


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _mark_densities(axes: Any, densities: Sequence[DensitySummary]) -> None:
    """Draw the 1 % and 10 % lines; for a single SAE also the shares of features above them, and the median."""
    first, several = densities[0], len(densities) > 1
    above = {FREQUENT_SHARE: first.over_1_percent_share, DENSE_SHARE: first.over_10_percent_share}
    _make_room(axes, 1 if several else 3)
    for row, (share, num) in enumerate(above.items()):
        if several:
            _mark(axes, share, f"{share:.0%}", row=0, dashes=":")
        else:
            _mark(axes, share, f"{num:.1%} above {share:.0%}", row, dashes=":")
    if not several and first.median is not None:
        _mark(axes, first.median, f"median {_percent(first.median)}", row=2)


def _make_room(axes: Any, rows: int) -> None:
    axes.set_ylim(0, axes.get_ylim()[1] / (1 - ROW * rows))


def _mark(axes: Any, x: float, name: str, row: int, dashes: str = "-") -> None:
    """Draw a line with its name beside its end, above the bars; two that may be near each other have different rows."""
    at_edge = axes.get_xaxis_transform()
    top = 1.0 - ROW * row
    across, _ = axes.transAxes.inverted().transform(axes.transData.transform((x, 0.0)))
    side = 1 if across < 0.75 else -1
    axes.plot([x, x], [0, top], color="black", linestyle=dashes, linewidth=1.1, transform=at_edge, scalex=False)
    axes.annotate(
        name,
        (x, top),
        xycoords=at_edge,
        xytext=(4 * side, 0),
        textcoords="offset points",
        fontsize=SMALL,
        ha="left" if side > 0 else "right",
        va="top",
    )


def _head(
    figure: Any, what: str, measurements: Sequence[Measurement], lines: Sequence[Any], said: Sequence[str]
) -> None:
    """Write a title, and a line about each SAE."""
    left, height = LEFT / WIDTH, figure.get_figheight()
    tokens = sorted({one.num_tokens for one in measurements})
    on = f"{' to '.join(f'{num:,}' for num in dict.fromkeys((tokens[0], tokens[-1])))} tokens"
    several = len(measurements) > 1
    title = f"{what} on {on}" if several else f"{what} of {_name(measurements[0])}"
    figure.text(left, 1 - 0.1 / height, title, fontsize=11.5, va="top")
    if not several:
        (one,) = measurements
        words = f"{_place(one)} · {one.d_sae:,} features · {on} · {said[0]}"
        figure.text(left, 1 - 0.34 / height, words, fontsize=SMALL, color=GREY, va="top")
        return
    figure.legend(
        lines,
        [f"{_name(one)} ({_place(one)}): {words}" for one, words in zip(measurements, said, strict=True)],
        loc="upper left",
        bbox_to_anchor=(left, 1 - 0.34 / height),
        borderaxespad=0.0,
        borderpad=0.0,
        labelspacing=0.35,
        frameon=False,
        fontsize=SMALL,
    )


def _name(one: Measurement) -> str:
    """Return its name; of a long path the end, which tells SAEs apart."""
    return one.name if len(one.name) <= LONGEST_NAME else f"…{one.name[1 - LONGEST_NAME :]}"


def _place(one: Measurement) -> str:
    first, *others = one.writes
    return f"{first} and {len(others)} more" if others else first


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _short_number(value: float) -> str:
    for unit, word in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{word}"
    return f"{value:g}"
