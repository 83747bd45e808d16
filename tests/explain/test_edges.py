"""Edges of every unit: a planted circuit, the accounts of B-cos units, ablation, and bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from loaded import loaded, shapes
from planted_circuit import B0, B1, BIAS, EDGES, POOLED, planted_circuit, probed

from polysem.errors import NonFiniteError, RunError, SpecError
from polysem.explain import edges as home
from polysem.explain.edges import edges
from polysem.models.hooked import HookedVisionModel
from polysem.store.additions import add_table
from polysem.store.run import Run

MLPS = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post", "blocks.2.mlp.hook_post"]


def traced(run: Run, model: object, **options: object) -> pd.DataFrame:
    given = {"data": shapes(), "device": "cpu", "progress": False, **options}
    return edges(run, model, **given)  # type: ignore[arg-type]


def test_a_planted_circuit_is_found_and_nothing_else(tmp_path: Path) -> None:
    run = probed(planted_circuit(), tmp_path / "run")
    table = traced(run, planted_circuit())
    totals = run.table("edge_totals").set_index(["site", "unit", "tail"])
    class_value = totals.loc[("class", 1, "upper"), "value"]
    for row in table.to_dict("records"):
        key = (row["source_site"], row["source_unit"]), (row["site"], row["unit"])
        truth = EDGES[key]
        if row["site"] == "class":
            truth *= (class_value - BIAS) / class_value
        # of pooled neurons the lower face has exemplars, too, that fire by less than nothing
        if np.isfinite(row["share"]):
            assert row["share"] == pytest.approx(truth, rel=1e-5)
            assert row["ablation"] == pytest.approx(row["contribution"], rel=1e-4)
    found = {
        ((r["source_site"], r["source_unit"]), (r["site"], r["unit"]))
        for r in table.to_dict("records")
    }
    assert found == set(EDGES)
    np.testing.assert_allclose(
        totals["units"] + totals["image"] + totals["rest"], totals["value"], atol=1e-6
    )
    assert totals.loc[("class", 1, "upper"), "rest"] == pytest.approx(BIAS, rel=1e-5)
    assert totals.loc[(B1, 5, "upper"), ["completeness", "coverage"]].tolist() == pytest.approx(
        [1, 1]
    )
    brightness = totals.loc[(POOLED, 0, "upper")]  # of which no neuron knows
    assert brightness["image"] == pytest.approx(brightness["value"], rel=1e-5)
    check = run.table("edge_check").set_index("site")
    assert check.loc["all", "method"] == "attribution"
    assert check.loc["all", ["same_sign", "median_ratio"]].tolist() == pytest.approx([1, 1])
    assert set(check.index) == {"all", B1, POOLED, "class"}
    assert run.table("edges").attrs["columns"] == home.EDGES


def test_clusters_feed_each_other_as_planted(tmp_path: Path) -> None:
    run = probed(planted_circuit(), tmp_path / "run")
    members = [(B0, 3, 0), (B0, 4, -1), (B1, 5, 1), (POOLED, 2, 1)]
    rows = [(site, unit, "upper", cluster, 1.0) for site, unit, cluster in members]
    columns = ["site", "unit", "tail", "cluster", "firmness"]
    table = pd.DataFrame(rows, columns=columns)
    add_table(run, "clusters", table, meanings=dict.fromkeys(columns, "said elsewhere"))
    traced(run, planted_circuit(), check=0)
    found = run.table("cluster_edges")
    one = found[found["cluster"] == 1].set_index(["kind", "source_cluster"])["share"]
    # (B1, 5) is fed by cluster 0 alone; the pooled neuron by (B1, 5), and by two in no cluster
    assert one[("cluster", 0)] == pytest.approx(0.5) and one[("cluster", 1)] == pytest.approx(0.5)
    assert one[("none", -1)] == pytest.approx(0, abs=1e-6)
    assert found.groupby("cluster")["share"].sum().tolist() == pytest.approx([1])
    assert set(found["members"]) == {2}


@pytest.mark.parametrize("sites", [None, "blocks.0.hook_resid_post,blocks.1.mlp.hook_post"])
def test_bcos_accounts_are_exact(sites: str | None, tmp_path: Path) -> None:
    model = loaded("bcos")
    run = probed(model, tmp_path / "run", sites=[*MLPS, "hook_pooled"])
    table = traced(run, model, sites=sites, keep=1000, check=5)
    totals = run.table("edge_totals").set_index(["site", "unit", "tail"])
    assert (totals["rest"].abs() <= 1e-4 * totals["value"].abs() + 1e-6).all()
    np.testing.assert_allclose(totals["coverage"], 1, rtol=1e-6)
    np.testing.assert_allclose(totals["kept"], totals["units"], rtol=1e-4, atol=1e-6)
    if sites is not None:  # the whole stream is cut: nothing leads around
        assert totals["image"].abs().max() < 1e-6
    sums = table.groupby(["site", "unit", "tail"])["contribution"].sum()
    np.testing.assert_allclose(sums, totals["kept"].loc[sums.index], rtol=1e-4, atol=1e-5)
    assert set(table["source_tail"]) == set(table["tail"]) == {"upper", "lower"}
    assert table["ablation"].notna().sum() == 5


def test_ablation_is_that_of_one_face_with_all_other_sites_held(tmp_path: Path) -> None:
    """Written slowly, one exemplar at a time, with TransformerLens's hooks."""
    model = loaded("bcos")
    run = probed(model, tmp_path / "run", sites=MLPS)
    table = traced(run, model, check=6, exemplars=2)
    hooked = HookedVisionModel(model.model)
    checked = table[table["ablation"].notna()]
    for row in checked[checked["site"] != "class"].to_dict("records"):
        units, falls = run.units(row["site"]).sel(tail=row["tail"]).isel(unit=row["unit"]), []
        for rank in range(2):
            one = units.isel(rank=rank)
            pixels = model.transform(shapes().read(int(one["top_image"])))[None]
            x = model.transform.normalize(pixels)
            patch = int(one["top_y"]) * units.sizes["x"] + int(one["top_x"])
            with torch.no_grad():
                _, cache = hooked.run_with_cache(x)
                held = {site: cache[site].clone() for site in MLPS}
                face = held[row["source_site"]][..., row["source_unit"]]
                face[(face > 0) if row["source_tail"] == "upper" else (face < 0)] = 0
                seen: dict[str, torch.Tensor] = {}

                def hold(value, hook, held=held, seen=seen):  # type: ignore[no-untyped-def]
                    seen[hook.name] = value
                    return held[hook.name]

                hooked.run_with_hooks(x, fwd_hooks=[(site, hold) for site in MLPS])
            sign = 1 if row["tail"] == "upper" else -1
            place = (0, hooked.n_prefix_tokens + patch, row["unit"])
            falls.append(sign * float(cache[row["site"]][place] - seen[row["site"]][place]))
        assert row["ablation"] == pytest.approx(np.mean(falls), rel=1e-3, abs=1e-5)


def test_what_cannot_be_traced_is_said(tmp_path: Path) -> None:
    model = planted_circuit()
    run = probed(model, tmp_path / "run")
    for options, message in (
        ({"sites": "*.hook_pst"}, "no site of this model matches"),
        ({"exemplars": 0}, "exemplars must be at least 1"),
        ({"keep": 0}, "keep must be at least 1"),
    ):
        with pytest.raises(SpecError, match=message):
            traced(run, model, **options)
    with pytest.raises(RunError, match="was probed with other weights"):
        traced(run, loaded("resnet18"))
    with pytest.raises(RunError, match="does not hold the images"):
        traced(run, model, data=shapes(5))
    heads = probed(model, tmp_path / "heads", sites="*.hook_z")
    with pytest.raises(SpecError, match=r"no neurons or channels, .* name sites"):
        traced(heads, model)
    with torch.no_grad():
        model.model.blocks[1].mlp.fc2.weight[0] = torch.nan  # type: ignore[union-attr, operator, index]
    with pytest.raises(NonFiniteError, match="nothing was written"):
        traced(run, model)
    assert not (run.path / "tables" / "edges.parquet").exists()
