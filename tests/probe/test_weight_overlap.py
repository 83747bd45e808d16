"""Overlap of weights: known cases, and what a run keeps of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_probe import Noise, models

from polysem.probe.probe import probe
from polysem.probe.weight_overlap import mean_absolute_cosine


def test_overlap_at_its_extremes_and_by_chance() -> None:
    np.testing.assert_allclose(mean_absolute_cosine(torch.eye(4)), 0)
    np.testing.assert_allclose(mean_absolute_cosine(torch.tensor([[1.0, 2], [-2, -4]])), 1)
    assert mean_absolute_cosine(torch.ones(1, 3)).isnan().all()
    rows = torch.randn(400, 64, generator=torch.manual_seed(0))
    chance = np.sqrt(2 / (np.pi * 64))
    assert mean_absolute_cosine(rows).mean() == pytest.approx(chance, rel=0.02)
    rows[0] = 0
    found = mean_absolute_cosine(rows)
    assert found[0].isnan()
    assert found[1:].mean() == pytest.approx(chance, rel=0.02)


@pytest.mark.parametrize("name", ["cls", "bcos"])
def test_a_run_keeps_the_overlap_of_mlp_neurons(name: str, tmp_path: Path) -> None:
    model = models()[name]()
    run = probe(model, Noise(3), out=tmp_path / "run")
    rows = model.model.blocks[1].mlp.fc1.weight.detach().double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    exact = (rows @ rows.T).abs().sum(1).sub(1) / (len(rows) - 1)
    units = run.units("blocks.1.mlp.hook_post")
    np.testing.assert_allclose(units["weight_cosine"], exact, rtol=1e-5)
    assert units["weight_cosine"].attrs["chance"] == pytest.approx(
        np.sqrt(2 / (np.pi * rows.shape[1]))
    )
    assert "weight_cosine" not in run.units("hook_pooled")
    assert "weight_cosine" not in run.units("blocks.1.attn.hook_z")
