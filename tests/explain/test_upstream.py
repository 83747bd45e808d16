"""What made units fire upstream: against W(x) between sites, and PURE's formula written slowly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from loaded import loaded, shapes
from torch import Tensor

import polysem
from polysem.errors import NonFiniteError, RunError, SpecError
from polysem.explain.linear import linear_map
from polysem.explain.run_exemplars import Attributed, attribute, site_exemplars
from polysem.explain.target import Target
from polysem.explain.upstream import previous_sites, unit_contributions, upstream
from polysem.models.hooked import HookedVisionModel
from polysem.models.load import LoadedModel
from polysem.store.run import Run

MLPS = ["blocks.0.mlp.hook_post", "blocks.2.mlp.hook_post"]
CHANNELS = ["layer1.1.hook_post", "layer2.0.hook_post"]
SITES = {"bcos": MLPS, "class_token": MLPS, "resnet18": CHANNELS, "bcos_resnet20_32": CHANNELS}


def probed(model: LoadedModel, out: Path, sites: list[str]) -> Run:
    pooled = [] if model.name == "bcos_resnet20_32" else ["hook_pooled"]  # it pools maps of logits
    return polysem.probe(
        model, shapes(), out=out, sites=[*sites, *pooled], top_k=3, batch_size=4, device="cpu",
        progress=False,
    )  # fmt: skip


def exemplar(
    run: Run, model: LoadedModel, site: str, at: tuple[int, int, int]
) -> tuple[Tensor, Target]:
    """Return the image of an exemplar and the target that it peaks at."""
    units = run.units(site)
    pixels = model.transform(shapes().read(int(units["top_image"][at])))[None]
    position = None
    if "top_y" in units:
        position = int(units["top_y"][at]) * units.sizes["x"] + int(units["top_x"][at])
    tail = str(units["tail"][at[0]].item())
    target = Target(at[1], site, tail=tail, position=position)  # type: ignore[arg-type]
    return model.transform.normalize(pixels), target


@pytest.mark.parametrize("name", ["class_token", "resnet18"])
def test_shares_are_pures(name: str, tmp_path: Path) -> None:
    model = loaded(name)
    source, site = SITES[name]
    run = probed(model, tmp_path / "run", SITES[name])
    store = upstream(
        run, model, sites=f"{site},hook_pooled", data=shapes(), device="cpu", progress=False
    )
    assert store == tmp_path / "run" / "upstream.zarr"
    for where, before in {site: source, "hook_pooled": site}.items():
        found, units = run.upstream(where), run.units(where)
        assert found.attrs["source"] == before and found.attrs["method"] == "input_gradient"
        n_source = run.units(before).sizes["unit"]
        assert found["share"].shape == (*units["top_image"].shape, n_source)
        none = np.isnan(units["top_image"].to_numpy())
        assert np.array_equal(np.isnan(found["share"]).all("source_unit"), none)
        for at in [(0, 0, 0), (0, 3, 2), (-1, 4, 1)]:
            if none[at]:
                continue
            x, target = exemplar(run, model, where, at)
            hooked = HookedVisionModel(model.model)
            seen: dict[str, Tensor] = {}
            points = [
                (n, lambda a, hook, seen=seen: seen.update({hook.name: a})) for n in (where, before)
            ]
            hooked.run_with_hooks(x.requires_grad_(), fwd_hooks=points)
            y = seen[where][0]
            if y.ndim == 3:
                y = y.flatten(1).T
            elif y.ndim == 2:
                y = y[hooked.n_prefix_tokens :]
            y = y[target.unit] if target.position is None else y[target.position, target.unit]
            y = y if target.tail == "upper" else -y
            (gradient,) = torch.autograd.grad(y, seen[before])
            r = (seen[before] * gradient)[0].detach()
            r = r.sum((1, 2)) if r.ndim == 3 else r.sum(0)
            stored = found.isel(tail=at[0], unit=at[1], rank=at[2])
            np.testing.assert_allclose(
                stored["share"], r / (r.abs().sum() + 1e-10), rtol=1e-3, atol=1e-6
            )
            assert float(stored["value"]) == pytest.approx(float(y.detach()), rel=1e-4)
            assert float(stored["explained"]) == pytest.approx(float(r.sum()), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["bcos", "bcos_resnet20_32"])
def test_contributions_of_bcos_networks_are_exact(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Channels pass on everything; of a transformer, the rest goes around the MLP."""
    model = loaded(name)
    source, site = SITES[name]
    run = probed(model, tmp_path / "run", SITES[name])
    model.model.to(dtype)
    found = {site: site_exemplars(run, site, 2)}
    total = np.full(found[site].shape, np.nan)
    value = np.full(found[site].shape, np.nan)

    def take(some: Attributed) -> None:
        some.fill(total, unit_contributions(some).sum(-1))
        some.fill(value, some.value)

    attribute(model, shapes(), found, take, starts={site: source}, progress=False)
    there = np.isfinite(total)
    assert np.array_equal(there, np.isfinite(value)) and there.any()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    if name != "bcos":
        np.testing.assert_allclose(total[there], value[there], rtol=tolerance, atol=tolerance)
        return
    for at in list(zip(*np.nonzero(there), strict=True))[::17]:
        x, target = exemplar(run, model, site, at)
        after = linear_map(model.model, x.to(dtype), [target], source="blocks.0.hook_resid_post")
        hooked = HookedVisionModel(model.model)
        _, cache = hooked.run_with_cache(
            x.to(dtype), names_filter=["blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out"]
        )
        around = float((after.weights[0] * cache["blocks.0.hook_resid_mid"]).sum())
        through = float((after.weights[0] * cache["blocks.0.hook_mlp_out"]).sum())
        assert total[at] == pytest.approx(through, rel=tolerance, abs=tolerance)
        assert total[at] + around == pytest.approx(value[at], rel=tolerance, abs=tolerance)


def test_the_last_neurons_by_default_and_fewer_exemplars(tmp_path: Path) -> None:
    model = loaded("bcos")
    run = probed(model, tmp_path / "run", MLPS)
    store = upstream(run, model, data=shapes(), exemplars=2, progress=False)
    assert [p.name for p in store.iterdir() if p.is_dir()] == MLPS[1:]
    found = run.upstream(MLPS[1])
    assert found.attrs["method"] == "bcos" and found.sizes["rank"] == 2
    assert float(np.abs(found["share"]).sum("source_unit").max()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(RunError, match=r"what made hook_pooled fire upstream; trace it with"):
        run.upstream("hook_pooled")


def test_which_site_is_before() -> None:
    sites = ["blocks.0.mlp.hook_post", "blocks.0.attn.hook_z", "blocks.3.mlp.hook_post"]
    assert previous_sites([*sites, "hook_pooled"]) == {
        sites[2]: sites[0],
        "hook_pooled": sites[2],
    }
    assert previous_sites(["layer1.0.hook_post", "hook_pooled"]) == {
        "hook_pooled": "layer1.0.hook_post"
    }
    assert previous_sites(sites[:2]) == {} == previous_sites(["hook_pooled"])


def test_what_cannot_be_traced_is_said(tmp_path: Path) -> None:
    model = loaded("bcos")
    run = probed(model, tmp_path / "run", MLPS)
    for sites, message in ((MLPS[0], "cannot be traced upstream"), ("*.hook_pst", "no site of")):
        with pytest.raises(SpecError, match=message):
            upstream(run, model, sites=sites, data=shapes(), progress=False)
    with pytest.raises(SpecError, match="exemplars must be at least 1"):
        upstream(run, model, exemplars=0, progress=False)
    with pytest.raises(RunError, match="was probed with other weights"):
        upstream(run, loaded("resnet18"), data=shapes(), progress=False)
    with pytest.raises(RunError, match="does not hold the images"):
        upstream(run, model, data=shapes(5), progress=False)
    with torch.no_grad():
        model.model.blocks[2].mlp.fc1.weight[0] = torch.nan  # type: ignore[union-attr, operator, index]
    with pytest.raises(NonFiniteError, match="nothing was written"):
        upstream(run, model, data=shapes(), progress=False)
    assert not (run.path / "upstream.zarr").exists()
