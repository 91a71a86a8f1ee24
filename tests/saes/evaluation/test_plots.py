"""What is drawn is what was counted, in files that any viewer opens, without a display and without a trace."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle, StepPatch
from tests.support.tiny_evaluation import D_SAE, measured, plain_texts, sae_at
from tests.support.tiny_models import make

from saeclamp_saes.errors import VerificationError
from saeclamp_saes.evaluation.eval_data import EvalData
from saeclamp_saes.evaluation.evaluate import EvaluatedSAE
from saeclamp_saes.evaluation.measurement import Measurement
from saeclamp_saes.evaluation.plots import activations_figure, density_figure, write_plots


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> EvaluatedSAE:
    saes = {"first": sae_at(), "second$_1$": sae_at(seed=1), "silent": sae_at(threshold=torch.full((D_SAE,), 1e9))}
    return measured(saes, make("llama"), EvalData(plain_texts(tmp_path_factory.mktemp("data"), 60)))


@pytest.fixture(scope="module")
def one(found: EvaluatedSAE) -> Measurement:
    return found.measurements[0]


def steps(axes: Any) -> list[Any]:
    return [patch.get_data() for patch in axes.patches if isinstance(patch, StepPatch)]


def bars(axes: Any) -> list[float]:
    return [float(patch.get_height()) for patch in axes.patches if isinstance(patch, Rectangle)]


def words(figure: Any) -> str:
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    inside = [text.get_text() for axes in figure.axes for text in axes.texts]
    return "\n".join([text.get_text() for text in figure.texts] + legends + inside)


def test_bars_of_the_density_plot_are_the_counts(one: Measurement) -> None:
    figure = density_figure([one])
    never, axes = figure.axes
    (drawn,) = steps(axes)
    assert drawn.values.tolist() == list(one.densities.histogram.counts)
    assert drawn.edges.tolist() == list(one.densities.histogram.edges)
    assert bars(never) == [one.densities.num_never]
    assert never.get_ylim() == axes.get_ylim()  # one scale for both
    assert never.get_ylim()[1] > max(*one.densities.histogram.counts, one.densities.num_never)
    assert sorted(line.get_xdata()[0] for line in axes.lines) == sorted([0.01, 0.1, one.densities.median])
    assert axes.get_xlim()[0] <= min(0.01, one.densities.histogram.edges[0])
    assert axes.get_xscale() == "log"
    assert "%" in axes.xaxis.get_major_formatter()(0.01, 0)
    assert axes.get_xlabel()
    assert never.get_ylabel()
    for said in (
        "first",
        "resid_post 1",
        f"{D_SAE} features",
        f"{one.num_tokens:,} tokens",
        f"{one.densities.num_never} never active",
        "median",
    ):
        assert said in words(figure)


def test_bars_of_the_activation_plot_are_the_counts(one: Measurement) -> None:
    figure = activations_figure([one])
    (axes,) = figure.axes
    (drawn,) = steps(axes)
    assert drawn.values.tolist() == list(one.activations.histogram.counts)
    assert drawn.edges.tolist() == list(one.activations.histogram.edges)
    marked = {one.activations.percentiles[percent] for percent in ("50", "99.9")}
    assert {line.get_xdata()[0] for line in axes.lines} == marked
    assert axes.get_xscale() == "log"
    assert "activation" in axes.get_xlabel()
    assert "activations" in axes.get_ylabel()
    assert "Positive activations of first" in words(figure)


def test_several_saes_are_drawn_as_shares_that_can_be_compared(found: EvaluatedSAE) -> None:
    figure = density_figure(found.measurements)
    never, axes = figure.axes
    for drawn, one in zip(steps(axes), found.measurements, strict=True):
        assert drawn.values == pytest.approx(np.array(one.densities.histogram.counts or [0]) / D_SAE)
    assert bars(never) == pytest.approx([one.densities.num_never / D_SAE for one in found.measurements])
    colours = {patch.get_edgecolor() for patch in axes.patches}
    dashes = {str(patch.get_linestyle()) for patch in axes.patches}
    assert len(colours) == len(dashes) == 3
    (axes,) = activations_figure(found.measurements).axes
    first, second, silent = (drawn.values.sum() for drawn in steps(axes))
    assert (first, second, silent) == pytest.approx((1.0, 1.0, 0.0))
    for name in ("first", "second$_1$", "silent"):
        assert name in words(figure)


def png_size(path: Path) -> tuple[int, int]:
    """Width and height, after every chunk's checksum was found right."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, kinds = 8, []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(body),)
        kinds.append(body[:4])
        at += 12 + length
    assert (kinds[0], kinds[-1]) == (b"IHDR", b"IEND")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.parametrize("num", [1, 3])
def test_files_are_pngs_of_a_size_for_a_page(found: EvaluatedSAE, tmp_path: Path, num: int) -> None:
    for chosen in (found.measurements[:num], found.measurements[-num:]):
        paths = write_plots(tmp_path / "new" / "folder", chosen)
        assert [path.name for path in paths] == ["density.png", "activations.png"]
        for path in paths:
            width, height = png_size(path)
            assert width == 1280
            assert 700 < height < 1000
            assert 10_000 < path.stat().st_size < 300_000


def test_a_long_name_and_many_saes_stay_on_the_page(one: Measurement) -> None:
    many = [replace(one, name=f"/a/very/long/path/{'x' * 80}/sae-{index}") for index in range(9)]
    for figure in (density_figure(many), activations_figure(many), density_figure(many[:1])):
        figure.canvas.draw()
        box = figure.bbox
        for text in [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]:
            extent = text.get_window_extent()
            assert box.x0 <= extent.x0 < extent.x1 <= box.x1, text.get_text()
            assert box.y0 <= extent.y0 < extent.y1 <= box.y1, text.get_text()
            assert all(extent.y0 > axes.bbox.y1 for axes in figure.axes), text.get_text()


def test_the_users_own_matplotlib_changes_nothing_and_is_not_changed(one: Measurement, tmp_path: Path) -> None:
    (plain, _) = write_plots(tmp_path / "plain", [one])
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "figure.dpi": 40, "text.usetex": True}):
        before = dict(mpl.rcParams)
        (styled, _) = write_plots(tmp_path / "styled", [one])
        assert dict(mpl.rcParams) == before
    assert styled.read_bytes() == plain.read_bytes()


def test_no_window_system_is_touched(one: Measurement, tmp_path: Path) -> None:
    """Whatever backend is asked for: pyplot, which would start it, is never imported."""
    (tmp_path / "one").write_bytes(pickle.dumps(one))
    code = (
        "import pickle, sys; from pathlib import Path; from saeclamp_saes.evaluation.plots import write_plots\n"
        "write_plots(Path(), [pickle.loads(Path('one').read_bytes())])\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"} | {"MPLBACKEND": "tkagg"}
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"
    assert png_size(tmp_path / "density.png") == (1280, 780)


def test_a_folder_that_cannot_be_made_is_a_sentence(one: Measurement, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VerificationError, match=r"The plots cannot be written to .*file/plots: Not a directory"):
        write_plots(tmp_path / "file" / "plots", [one])
