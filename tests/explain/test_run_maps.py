"""Maps of a run's exemplars: each as if explained by itself, kept where others can read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from loaded import loaded, shapes

import polysem
from polysem.errors import DataError, NonFiniteError, RunError, SpecError
from polysem.explain.baselines import input_gradient
from polysem.explain.linear import bcos
from polysem.explain.maps import shrink
from polysem.explain.run_maps import explain_run
from polysem.explain.target import Target
from polysem.models.load import LoadedModel
from polysem.store.run import Run

SITES = {
    "bcos": ["blocks.1.mlp.hook_post", "blocks.2.attn.hook_z", "hook_pooled"],
    "class_token": ["blocks.1.mlp.hook_post", "blocks.0.attn.hook_z"],
    "resnet18": ["layer2.0.hook_post", "hook_pooled"],
}


def probed(model: LoadedModel, out: Path, n: int = 6) -> Run:
    return polysem.probe(
        model, shapes(n), out=out, sites=SITES[model.name], top_k=3, batch_size=4, device="cpu",
        progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", SITES)
def test_each_map_is_that_of_its_exemplar(name: str, tmp_path: Path) -> None:
    model = loaded(name)
    run = probed(model, tmp_path / "run")
    store = explain_run(run, model, data=shapes(), device="cpu", progress=False)
    assert store == tmp_path / "run" / "contributions.zarr"
    read = Run.open(tmp_path / "run")
    method = bcos if name == "bcos" else input_gradient
    grid = (11, 16) if name == "resnet18" else (2, 3)
    for site in SITES[name]:
        found, units = read.contributions(site), read.units(site)
        assert found.attrs["method"] == method.__name__
        top = units["top_image"].to_numpy()
        assert found["contribution"].shape == (*top.shape, *grid)
        assert np.array_equal(np.isnan(found["value"]), np.isnan(top))
        sign = np.where(units["tail"].to_numpy() == "upper", 1, -1)[:, None, None]
        np.testing.assert_allclose(found["value"], sign * units["top_value"], rtol=1e-3, atol=1e-5)
        for tail, unit, rank in [(0, 0, 0), (0, 1, 2), (-1, 2, 1)]:
            image = top[tail, unit, rank]
            if np.isnan(image):
                assert np.isnan(found["contribution"][tail, unit, rank]).all()
                continue
            position = None
            if "top_y" in units:
                y, x = (int(units[f"top_{a}"][tail, unit, rank]) for a in "yx")
                position = y * units.sizes["x"] + x
            said = "upper" if sign[tail] == 1 else "lower"
            target = Target(unit, site, tail=said, position=position)  # type: ignore[arg-type]
            pixels = model.transform(shapes().read(int(image)))[None]
            alone = method(model.model, model.transform.normalize(pixels), target)
            cells = found["contribution"][tail, unit, rank].to_numpy()
            np.testing.assert_allclose(cells, shrink(alone, grid)[0], rtol=1e-3, atol=1e-4)
            explained = float(found["explained"][tail, unit, rank])
            assert explained == pytest.approx(float(alone.sum()), rel=1e-3, abs=1e-4)


def test_some_sites_and_ranks_and_another_size(tmp_path: Path) -> None:
    model = loaded("bcos")
    run = probed(model, tmp_path / "run")
    explain_run(
        run, model, sites="*.attn.hook_z", data=shapes(), exemplars=1, cells=12, progress=False
    )
    found = run.contributions("blocks.2.attn.hook_z")
    assert dict(found.sizes) == {"tail": 1, "unit": 3, "rank": 1, "y": 8, "x": 12}
    summed = found["contribution"].sum(("y", "x"))
    np.testing.assert_allclose(summed, found["value"], rtol=1e-4)
    with pytest.raises(RunError, match="holds no contribution maps of hook_pooled; make them"):
        run.contributions("hook_pooled")


def test_other_weights_or_images_are_refused(tmp_path: Path) -> None:
    model = loaded("bcos")
    run = probed(model, tmp_path / "run")
    other = loaded("bcos", depth=4)
    with pytest.raises(RunError, match="was probed with other weights"):
        explain_run(run, other, data=shapes(), progress=False)
    with pytest.raises(RunError, match="does not hold the images"):
        explain_run(run, model, data=shapes(5), progress=False)
    with pytest.raises(DataError, match="holds 5 images"):
        explain_run(run, model, data="shapes:test?n=5&size=32", progress=False)
    with pytest.raises(SpecError, match="no site of this model matches"):
        explain_run(run, model, data=shapes(), sites="*.mlp.hook_pst", progress=False)
    with pytest.raises(SpecError, match="cells must be at least 1"):
        explain_run(run, model, data=shapes(), cells=0, progress=False)
    assert not (run.path / "contributions.zarr").exists()


def test_maps_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model = loaded("bcos")
    run = probed(model, tmp_path / "run")
    with torch.no_grad():
        model.model.blocks[0].mlp.fc1.weight[0] = torch.nan  # type: ignore[union-attr, operator, index]
    with pytest.raises(NonFiniteError, match="nothing was written"):
        explain_run(run, model, data=shapes(), progress=False)
    assert not (run.path / "contributions.zarr").exists()
