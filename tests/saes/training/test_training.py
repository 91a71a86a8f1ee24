"""Training finds what was planted, computes what the formulas say, and calibrates to the very number."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from saeclamp_saes.errors import TrainingError
from saeclamp_saes.evaluation import metrics
from saeclamp_saes.sae import SAE
from saeclamp_saes.sites import Site
from saeclamp_saes.training.architectures import ARCHITECTURES, forward, learning_rate
from saeclamp_saes.training.batchtopk_threshold import fit_threshold
from saeclamp_saes.training.config import CALIBRATED, NAMES, Name, TrainingConfig
from saeclamp_saes.training.export import fold_norms, reread
from saeclamp_saes.training.held_out import evaluate_held_out
from saeclamp_saes.training.mixing_buffer import Schedule
from saeclamp_saes.training.trainer import Trainer
from saeclamp_saes.training.training_sae import TrainingSAE

SITE = Site("resid_post", 3)


class Planted:
    """
    Vectors that are sums of a few known directions, on top of a constant.

    All are as frequent, which is hard for a Matryoshka SAE: its first few features are to reconstruct alone, and blend some.
    With other seeds it finds 22 to 24 of the 24; the others find at least 23.
    """

    def __init__(self, width: int = 32, num: int = 24, active: float = 3.0) -> None:
        self.generator = torch.Generator().manual_seed(6)
        self.directions = normalize(torch.randn(num, width, generator=self.generator), dim=1)
        self.constant = 0.3 * torch.randn(width, generator=self.generator)
        self.share = active / num

    def draw(self, num_tokens: int) -> Tensor:
        is_on = torch.rand(num_tokens, len(self.directions), generator=self.generator) < self.share
        size = 0.7 + 0.6 * torch.rand(is_on.shape, generator=self.generator)
        return (is_on * size) @ self.directions + self.constant


def trained(recipe: TrainingConfig, planted: Planted) -> tuple[Trainer, float]:
    """The trainer, and the scale."""
    x = planted.draw(4096)
    scale = float(len(x) / x.square().sum()) ** 0.5
    trainer = Trainer(recipe, x.mean(dim=0) * scale)
    for _ in range(recipe.num_steps):
        trainer.step(planted.draw(recipe.batch) * scale)
    return trainer, scale


@pytest.mark.parametrize("name", NAMES)
def test_planted_directions_are_found(name: Name) -> None:
    recipe = TrainingConfig(d_sae=64, architecture=name, k=3, tokens=256 * 1000, batch=256, lr=3e-3)
    planted = Planted()
    trainer, scale = trained(recipe, planted)
    tensors = fold_norms(trainer.sae, scale, ARCHITECTURES[name].saved_as)
    cosine = (planted.directions @ tensors["W_dec"].T).max(dim=1).values
    assert (cosine > 0.9).float().mean() >= 0.95
    sae = reread(tensors, SITE, ARCHITECTURES[name].saved_as, 3)
    held_out = planted.draw(4000)
    if ARCHITECTURES[name].calibrated:
        sae = fit_threshold(sae, lambda: iter(held_out.split(999)), 3)
    figure = evaluate_held_out(sae, lambda: iter(held_out.split(999)))
    assert figure.explained_variance > 0.8
    assert figure.l0 == pytest.approx(3.0, abs=0.6) if name != "relu" else 3 < figure.l0 < 20


# ------------------------------------------------------------------------------------------------------ the slow twin


def slow_loss(recipe: TrainingConfig, parts: dict[str, list[Any]], xs: list[list[float]], dead: list[bool]) -> float:
    """The textbook's loss in plain python, one number at a time."""
    W_enc, b_enc, W_dec, b_dec = (parts[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    d_in, d_sae = len(b_dec), len(b_enc)

    def dot(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    pre = [
        [dot([x[i] - b_dec[i] for i in range(d_in)], [row[j] for row in W_enc]) + b_enc[j] for j in range(d_sae)]
        for x in xs
    ]
    positive = [[max(0.0, value) for value in row] for row in pre]
    acts = positive
    if recipe.architecture == "topk":
        acts = [[a if a in sorted(row)[-recipe.k :] else 0.0 for a in row] for row in positive]
    elif recipe.architecture in ("batchtopk", "matryoshka"):
        largest = sorted(a for row in positive for a in row)[-recipe.k * len(xs) :]
        acts = [[a if a in largest else 0.0 for a in row] for row in positive]
    elif recipe.architecture == "jumprelu":
        acts = [[p if p > t else 0.0 for p, t in zip(row, parts["threshold"], strict=True)] for row in pre]

    def decoded(row: list[float], end: int) -> list[float]:
        return [b_dec[i] + sum(row[j] * W_dec[j][i] for j in range(end)) for i in range(d_in)]

    def missing(end: int) -> list[list[float]]:
        return [[a - b for a, b in zip(x, decoded(row, end), strict=True)] for x, row in zip(xs, acts, strict=True)]

    def mean_square(rows: list[list[float]]) -> float:
        return sum(dot(row, row) for row in rows) / len(rows)

    ends = [1, 2, 4, 8, 16, 32] if recipe.architecture == "matryoshka" else [d_sae]
    if recipe.smallest_group == 5:
        ends = [5, 10, 20, 32]
    loss = sum(mean_square(missing(end)) for end in ends) / len(ends)
    if recipe.architecture == "relu":
        lengths = [math.sqrt(dot(row, row)) for row in W_dec]
        return loss + recipe.l1 * sum(dot(row, lengths) for row in acts) / len(xs)
    if recipe.architecture == "jumprelu":
        active = sum(a != 0 for row in acts for a in row) / len(xs)
        loss += (active / recipe.k - 1) ** 2
    if not any(dead):
        return loss
    left, most = missing(d_sae), min(d_in // 2, sum(dead))
    revived = []
    for row, error in zip(positive, left, strict=True):
        best = sorted((row[j] for j in range(d_sae) if dead[j]), reverse=True)[:most]
        part = [row[j] if dead[j] and row[j] in best else 0.0 for j in range(d_sae)]
        revived.append([error[i] - sum(part[j] * W_dec[j][i] for j in range(d_sae)) for i in range(d_in)])
    mean = [sum(error[i] for error in left) / len(left) for i in range(d_in)]
    variance = mean_square([[error[i] - mean[i] for i in range(d_in)] for error in left])
    return loss + mean_square(revived) / variance / 32


def random_dictionary(d_in: int = 6, d_sae: int = 32, seed: int = 2) -> TrainingSAE:
    generator = torch.Generator().manual_seed(seed)
    sae = TrainingSAE(torch.zeros(d_in), d_sae, seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.abs_()
    return sae


@pytest.mark.parametrize(("name", "smallest_group"), [*((name, None) for name in NAMES), ("matryoshka", 5)])
@pytest.mark.parametrize("num_dead", [0, 2, 20])
def test_the_loss_is_the_textbooks(name: Name, smallest_group: int | None, num_dead: int) -> None:
    recipe = TrainingConfig(d_sae=32, architecture=name, k=5, smallest_group=smallest_group, tokens=1000, batch=10)
    sae = random_dictionary()
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    is_dead = torch.arange(32) >= 32 - num_dead
    loss = forward(recipe, sae, x, step=50, is_dead=is_dead).loss
    parts = {key: tensor.double().tolist() for key, tensor in sae.state_dict().items()}
    assert loss.item() == pytest.approx(slow_loss(recipe, parts, x.double().tolist(), is_dead.tolist()), rel=1e-5)


def test_a_thresholds_gradient_is_the_kernels() -> None:
    recipe = TrainingConfig(d_sae=32, architecture="jumprelu", k=5, tokens=1000, batch=10, bandwidth=0.8)
    sae = random_dictionary()
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    out = forward(recipe, sae, x, step=50, is_dead=torch.zeros(32, dtype=torch.bool))
    out.acts.retain_grad()
    out.loss.backward()
    pre, threshold = sae.pre(x).detach(), sae.threshold.detach()
    assert out.acts.grad is not None
    l0 = float((pre > threshold).sum()) / 9
    expected = torch.zeros(32)
    for token in range(9):
        for feature in range(32):
            if abs(pre[token, feature] - threshold[feature]) < 0.4:
                through_acts = -threshold[feature] / 0.8 * out.acts.grad[token, feature]
                through_count = -1 / 0.8 * 2 * (l0 / 5 - 1) / 5 / 9
                expected[feature] += through_acts + through_count
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(sae.threshold.grad, expected, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- a step


def test_decoder_rows_stay_of_unit_length_where_they_should() -> None:
    for name, is_unit in {"batchtopk": True, "relu": False}.items():
        recipe = TrainingConfig(d_sae=48, architecture=name, k=4, tokens=64 * 50, batch=64, lr=1e-2)  # type: ignore[arg-type]
        lengths = trained(recipe, Planted())[0].sae.W_dec.detach().norm(dim=1)
        assert torch.allclose(lengths, torch.ones(48), atol=1e-5) is is_unit


def test_features_die_after_the_window_and_are_revived() -> None:
    recipe = TrainingConfig(d_sae=48, k=4, tokens=64 * 320, batch=64, lr=1e-3)
    assert recipe.dead_window == 20 * 64
    planted = Planted()
    dead = {}
    for revival in (0.0, 1 / 32):
        trainer = Trainer(replace(recipe, revival=revival), torch.zeros(32))
        with torch.no_grad():
            trainer.sae.b_enc[:24] = -1.0  # silenced, until something moves them
        shares = [float(trainer.step(planted.draw(64)).dead) for _ in range(recipe.num_steps)]
        assert max(shares[:20]) == 0.0
        assert shares[20] > 0.4
        dead[revival] = shares[-1]
    assert dead[0.0] > 0.4
    assert dead[1 / 32] < 0.75 * dead[0.0]


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = TrainingConfig(d_sae=8, k=2, tokens=1000, batch=1)
    assert [recipe.rate(step) for step in (0, 24, 49, 500, 799)] == pytest.approx([0.02, 0.5, 1.0, 1.0, 1.0])
    assert [recipe.rate(step) for step in (900, 999)] == pytest.approx([0.5, 0.005])
    assert [recipe.penalty(step) for step in (0, 49, 999)] == pytest.approx([0.02, 1.0, 1.0])


def test_k_falls_from_four_times_its_value() -> None:
    recipe = TrainingConfig(d_sae=100, k=10, tokens=1000, batch=1, annealed=0.1)
    assert [recipe.k_at(step) for step in (0, 50, 100, 999)] == [40, 25, 10, 10]
    assert TrainingConfig(d_sae=100, k=10, tokens=1000, batch=1).k_at(0) == 10


def test_the_dead_window_fits_the_run() -> None:
    assert [TrainingConfig(d_sae=64, tokens=tokens).dead_window for tokens in (5_000_000, 50_000_000, 10**9)] == [
        312_500,
        3_125_000,
        10_000_000,
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 100}, "100 active features a token cannot be had of 64"),
        ({"k": 64}, "64 active features a token of 64 would be all of them, which no threshold gives"),
        ({"k": 64, "architecture": "matryoshka"}, "which no threshold gives"),
        ({"k": 0}, "k must be at least 1"),
        ({"tokens": 2048 * 9}, "make 9 steps of 2048"),
        ({"smallest_group": 8}, "Only matryoshka has groups of features; batchtopk has none"),
        ({"architecture": "matryoshka", "smallest_group": 65}, "must hold 1 to 64 features, not 65"),
        ({"architecture": "gated"}, "There is no architecture 'gated'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        TrainingConfig(**{"d_sae": 64, **options})


# -------------------------------------------------------------------------------------------------- rounds of the pool


@pytest.mark.parametrize(("num_batches", "most"), [(10, 50), (50, 10), (100, 7), (101, 33), (7, 1), (3, 3), (1000, 2)])
def test_as_many_batches_are_harvested_as_are_used(num_batches: int, most: int) -> None:
    schedule = Schedule.plan(num_batches, most)
    used = [schedule.used(round_) for round_ in range(schedule.num_refills + 1)]
    assert sum(used) == num_batches
    assert used[-1] == schedule.size <= max(2, most)
    assert all(1 <= one <= max(1, schedule.size // 2) for one in used[:-1])


# --------------------------------------------------------------------------------------------- calibration and figures


def plain_sae(d_in: int = 6, d_sae: int = 32) -> SAE:
    return reread(fold_norms(random_dictionary(d_in, d_sae), 0.5, "standard"), SITE, "standard", 1)


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("portion", [1, 77, 10_000])
def test_the_threshold_leaves_k_features_a_token_exactly(k: int, portion: int) -> None:
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(4))
    sae = fit_threshold(plain_sae(), lambda: iter(x.split(portion)), k)
    assert sum(int(sae.encode(part).count_nonzero()) for part in x.split(portion)) == k * 500
    parts = [plain_sae().encode(part).flatten() for part in x.split(portion)]
    in_order = torch.cat(parts).sort(descending=True).values
    assert in_order[k * 500] <= sae.threshold[0] < in_order[k * 500 - 1]


def test_where_k_is_not_reached_all_positive_activations_are_kept_as_in_training() -> None:
    x, plain = torch.randn(50, 6), plain_sae()
    sae = fit_threshold(plain, lambda: iter(x.split(9)), 31)
    assert 0 < int(plain.encode(x).count_nonzero()) < 31 * 50
    assert torch.equal(sae.encode(x), plain.encode(x))


def test_an_sae_without_any_activation_is_refused() -> None:
    dead = replace(plain_sae(), b_enc=torch.full((32,), -1e9))
    with pytest.raises(TrainingError, match="No feature is active on any held-out token"):
        fit_threshold(dead, lambda: iter([torch.randn(50, 6)]), 3)


def test_the_recipe_knows_which_architectures_are_calibrated() -> None:
    assert {name for name, how in ARCHITECTURES.items() if how.calibrated} == set(CALIBRATED)


def test_held_out_vectors_that_do_not_vary_are_refused() -> None:
    x = torch.ones(50, 6)
    with pytest.raises(TrainingError, match="do not vary"):
        evaluate_held_out(plain_sae(), lambda: iter([x]))


def test_figures_in_portions_are_those_of_the_whole() -> None:
    x = torch.randn(700, 6, generator=torch.Generator().manual_seed(4)) + 3
    sae = fit_threshold(plain_sae(), lambda: iter([x]), 3)
    got = evaluate_held_out(sae, lambda: iter(x.split(99)))
    acts = sae.encode(x)
    assert got.num_tokens == 700
    assert got.explained_variance == pytest.approx(metrics.explained_variance(x, sae.decode(acts, x)), abs=1e-6)
    assert got.pca_explained_variance == pytest.approx(metrics.pca_explained_variance(x, 3), abs=1e-9)
    assert got.l0 == pytest.approx(3.0)
    assert got.dead_share == metrics.dead_share(acts.count_nonzero(dim=0))
    assert got.dense_share == metrics.dense_share(acts.count_nonzero(dim=0), 700) > 0


@pytest.mark.parametrize(
    ("architecture", "steps", "multiple"),
    [
        ("batchtopk", 100_000, 1.0),
        ("batchtopk", 50_000, 1.0),
        ("matryoshka", 12_500, 2.0),
        ("topk", 2_000, 5.0),
        ("topk", 100, 8.0),
        ("jumprelu", 100, 1.0),
    ],
)
def test_a_short_run_learns_faster(architecture: Name, steps: int, multiple: float) -> None:
    recipe = TrainingConfig(d_sae=2**12, architecture=architecture, tokens=64 * steps, batch=64)
    assert learning_rate(recipe) == pytest.approx(2e-4 * 2 * multiple)
    assert learning_rate(replace(recipe, lr=0.25)) == 0.25


def test_the_baselines_learning_rate_is_the_textbooks() -> None:
    assert learning_rate(TrainingConfig(d_sae=2**12, architecture="relu", tokens=6400, batch=64)) == 3e-4
