"""The strongest features of a token are those of the whole SAE, in however many parts they are found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import make_sae
from tests.support.tiny_saes import D_IN, D_SAE

from saeclamp_saes import narrow_rows, read_sae
from saeclamp_server.engine.worker.site_vectors import SiteVectors
from saeclamp_server.engine.worker.top_features import TopFeatureFinder, TopFeaturesInputs, strongest_features


def test_strongest_features_are_found_in_parts_as_at_once(tmp_path: Path) -> None:
    sae = read_sae(make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE))
    x = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(0))
    wanted = TopFeaturesInputs(torch.arange(50), torch.arange(50) % 7 > 0, torch.zeros(50, dtype=torch.bool), 5)
    whole, in_parts = strongest_features(sae, x, wanted), strongest_features(sae, x, wanted, 4 * 3 * D_SAE * 4)
    assert torch.equal(whole.features, in_parts.features)
    assert torch.allclose(whole.acts, in_parts.acts, atol=1e-5, equal_nan=True)
    assert whole.acts.isnan().all(dim=1).tolist() == [n % 7 == 0 for n in range(50)]
    assert torch.equal(whole.features[1], sae.encode(x[1]).topk(5).indices)


def test_of_an_sae_that_is_kept_in_bf16_the_strongest_features_are_those_of_the_same_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow_rows, "WIDENED_BYTES", 7 * 4 * D_IN)
    sae = read_sae(make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE, dtype=torch.bfloat16))
    x = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(0))
    everyone = torch.ones(50, dtype=torch.bool)
    wanted = TopFeaturesInputs(torch.arange(50), everyone, ~everyone, 5)
    found, expected = strongest_features(sae.narrowed(), x, wanted), strongest_features(sae, x, wanted)
    torch.testing.assert_close(found.acts, expected.acts)
    assert torch.equal(found.features[found.acts > 0], expected.features[expected.acts > 0])


def test_at_sinks_nothing_is_found_unless_they_are_asked_for(tmp_path: Path) -> None:
    sae = read_sae(make_sae(tmp_path / "sae", layer=0, d_in=D_IN, d_sae=D_SAE))
    finder, everyone = TopFeatureFinder(), torch.ones(4, dtype=torch.bool)
    finder.wanted = {"mine": TopFeaturesInputs(torch.arange(4), everyone, torch.tensor([False, True, False, True]), 3)}
    hidden = torch.randn(4, D_IN) * torch.tensor([100.0, 100.0, 1.0, 1.0])[:, None]
    vectors = SiteVectors(hidden, None, whole_stream=True, norm_eps=None)
    finder.find("mine", sae, vectors, torch.tensor(50.0))
    assert finder.found["mine"].acts.isnan().all(dim=1).tolist() == [True, False, False, False]
