"""Circuits of a target: the planted one is found, flows are conserved, and bad input is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from loaded import loaded, shapes
from planted_circuit import B0, B1, BIAS, EDGES, POOLED, THROUGH, planted_circuit, probed

from polysem.errors import RunError, SpecError
from polysem.explain.circuits import Circuit, circuits
from polysem.explain.linear import linear_map
from polysem.explain.target import Target
from polysem.store.additions import add_table
from polysem.store.run import Run

MLPS = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post", "blocks.2.mlp.hook_post"]


def found(run: Run, model: Any, **options: Any) -> list[Circuit]:
    return circuits(run, model, **{"data": shapes(), "device": "cpu", "progress": False, **options})


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return probed(planted_circuit(), tmp_path_factory.mktemp("planted") / "run")


@pytest.fixture(scope="module")
def bcos(tmp_path_factory: pytest.TempPathFactory) -> Run:
    model = loaded("bcos")
    return probed(model, tmp_path_factory.mktemp("bcos") / "run", sites=[*MLPS, "hook_pooled"])


def both_ways(run: Run, site: str) -> int:
    """Return a unit that fires in both directions."""
    top = run.units(site)["top_value"].to_numpy()
    return int(np.flatnonzero((top[0] > 0).all(1) & (top[1] < 0).all(1))[0])


def test_the_planted_circuit_of_a_class_is_found(planted: Run) -> None:
    (circuit,) = found(planted, planted_circuit(), of_class="b", nodes=4, keep=4)
    assert circuit.name == "class_1" and circuit.title == "class 1 (b)"
    of_units = 1 - BIAS / circuit.facts["value"]
    nodes = {(r["site"], r["unit"]): r for r in circuit.nodes.to_dict("records")}
    end = nodes.pop(("class_1", -1))
    assert {key: row["share"] for key, row in nodes.items()} == pytest.approx(
        {key: share * of_units for key, share in THROUGH.items()}, rel=1e-5
    )
    assert end["kept"] == pytest.approx(of_units) and end["rest"] == pytest.approx(1 - of_units)
    edges = {}
    names = [*((r["site"], r["unit"]) for r in circuit.nodes[:-1].to_dict("records")), ("class", 1)]
    for source, target, share in circuit.edges.itertuples(index=False):
        edges[names[source], names[target]] = share
    through = {**THROUGH, ("class", 1): 1.0}
    assert edges == pytest.approx(
        {
            (source, target): part * through[target] * of_units
            for (source, target), part in EDGES.items()
            if target != (POOLED, 1)  # which class b does not read
        },
        rel=1e-5,
    )


def test_a_unit_a_facet_and_a_cluster(planted: Run) -> None:
    (circuit,) = found(planted, planted_circuit(), unit=f"{B1}:5")
    assert circuit.name == f"{B1}_5_upper" and circuit.title == f"{B1}:5"
    assert circuit.facts["kept"] == pytest.approx(1)
    assert circuit.nodes[["site", "unit"]].values.tolist() == [[B0, 3], [circuit.name, -1]]
    columns = ["site", "unit", "tail", "facet", "ranks"]
    facets = pd.DataFrame([(B1, 5, "upper", 0, np.array([1]))], columns=columns)
    add_table(planted, "facets", facets, meanings=dict.fromkeys(columns, "said elsewhere"))
    (part,) = found(planted, planted_circuit(), unit=f"{B1}:5:upper", facet=0)
    assert part.facts["exemplars"] == 1 and part.facts["value"] == pytest.approx(
        float(planted.units(B1)["top_value"].sel(tail="upper", unit=5)[1])
    )
    members = [(B1, 5, 0), (POOLED, 2, 0), (B0, 3, -1)]
    rows = [(site, unit, "upper", cluster, 1.0) for site, unit, cluster in members]
    columns = ["site", "unit", "tail", "cluster", "firmness"]
    table = pd.DataFrame(rows, columns=columns)
    add_table(planted, "clusters", table, meanings=dict.fromkeys(columns, "said elsewhere"))
    (group,) = found(planted, planted_circuit(), cluster=0)
    assert group.nodes["site"].drop_duplicates().tolist() == [B0, B1, "cluster_0"]
    shares = group.nodes.set_index(["site", "unit"])["share"]
    # half the firing is the pooled neuron's, to which neuron 3 gives 3/4; of the other, all
    assert shares[(B0, 3)] == pytest.approx(0.5 * 0.75 + 0.5)
    assert shares[(B1, 5)] == pytest.approx(0.5) and shares[(B1, 7)] == pytest.approx(-0.125)
    assert group.facts["kept"] == pytest.approx(1)


@pytest.mark.parametrize("asked", [{"unit": MLPS[2]}, {"of_class": 0}])
def test_what_flows_into_a_bcos_face_flows_out_of_it(bcos: Run, asked: dict[str, Any]) -> None:
    """With everything kept, the accounts of each face close, from both of its sides."""
    model = loaded("bcos")
    if "of_class" in asked:
        asked = {"of_class": int(bcos.images["prediction"].mode().iloc[0])}
    else:
        asked = {"unit": f"{MLPS[2]}:{both_ways(bcos, MLPS[2])}"}
    every = found(bcos, model, **asked, nodes=1000, keep=1000)
    assert len(every) == (2 if "unit" in asked else 1)
    for circuit in every:
        nodes, edges = circuit.nodes.set_index("node"), circuit.edges
        near = 1e-4 * np.abs(nodes["share"]) + 1e-5
        assert (nodes["rest"].abs() < near).all()
        assert (nodes["others"].abs() < near).all()
        out = edges.groupby("source")["share"].sum().reindex(nodes.index[:-1], fill_value=0)
        np.testing.assert_allclose(out, nodes["share"][:-1], rtol=1e-4, atol=1e-5)
        assert circuit.facts["method"] == "bcos" and nodes["share"].iloc[-1] == 1


def test_what_flows_through_a_site_is_w_of_x_applied_to_it(bcos: Run) -> None:
    model = loaded("bcos")
    unit = both_ways(bcos, MLPS[2])
    (circuit,) = found(bcos, model, unit=f"{MLPS[2]}:{unit}:upper", exemplars=1, nodes=1000)
    one = bcos.units(MLPS[2]).sel(tail="upper", unit=unit).isel(rank=0)
    x = model.transform.normalize(model.transform(shapes().read(int(one["top_image"])))[None])
    place = int(one["top_y"]) * one.sizes["x"] + int(one["top_x"])
    rows = linear_map(model.model, x, [Target(unit, MLPS[2], position=place)], source=MLPS[0])
    parts, value = rows.contributions[0, 0] / rows.values[0, 0], rows.source[0]
    slow = {"upper": (parts * (value > 0)).sum(0), "lower": (parts * ~(value > 0)).sum(0)}
    mine = circuit.nodes[circuit.nodes["site"] == MLPS[0]]
    assert len(mine) > 20
    for row in mine.to_dict("records"):
        assert row["share"] == pytest.approx(float(slow[row["tail"]][row["unit"]]), abs=1e-5)


def test_only_the_strongest_are_kept_and_the_rest_is_counted(bcos: Run) -> None:
    model = loaded("bcos")
    face = f"{MLPS[2]}:{both_ways(bcos, MLPS[2])}:upper"
    (whole,) = found(bcos, model, unit=face, nodes=1000, keep=1000)
    (some,) = found(bcos, model, unit=face, nodes=3, keep=2)
    assert some.nodes["site"].value_counts()[MLPS[1]] == 3
    assert (some.edges.groupby("target").size().drop(some.nodes["node"].iloc[-1]) <= 2).all()
    accounts = ["kept", "others", "image", "rest"]
    np.testing.assert_allclose(some.nodes[accounts].sum(axis=1), some.nodes["share"], atol=1e-6)
    end, both = some.nodes.iloc[-1], whole.nodes.iloc[-1]
    assert end["kept"] + end["others"] == pytest.approx(both["kept"], abs=1e-5)
    assert end["image"] == pytest.approx(both["image"], abs=1e-5)


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "name a unit, a class or a cluster"),
    ({"unit": f"{B1}:5", "of_class": 1}, "leads to one thing"),
    ({"unit": f"{B1}:99"}, "has no unit 99"),
    ({"unit": "blocks.1.mlp.hook_pots:1"}, r"no site .* did you mean"),
    ({"unit": "a"}, "'a' is not site:unit, such as"),
    ({"unit": f"{B1}:5:lower"}, "fire in one direction"),
    ({"unit": f"{B1}:5:mean"}, "is not site:unit"),
    ({"unit": f"{B1}:5", "facet": 7}, "has no facet 7"),
    ({"of_class": "d"}, "there is no class 'd'"),
    ({"of_class": 3}, "there is no class 3"),
    ({"of_class": 0}, "takes for class 0"),
    ({"cluster": 5}, "has no cluster 5"),
    ({"of_class": 1, "facet": 0}, "name the unit"),
    ({"unit": f"{B0}:3", "sites": POOLED}, "no traced site lies before"),
    ({"unit": f"{B1}:5", "sites": "layer1.*"}, "no site of this model matches"),
    ({"of_class": 1, "nodes": 0}, "nodes must be at least 1"),
]


@pytest.mark.parametrize(("asked", "message"), BAD, ids=[m for _, m in BAD])
def test_what_cannot_be_asked_is_said(planted: Run, asked: dict[str, Any], message: str) -> None:
    columns = ["site", "unit", "tail", "cluster", "firmness"]
    table = pd.DataFrame([(B1, 5, "upper", 0, 1.0)], columns=columns)
    add_table(planted, "clusters", table, meanings=dict.fromkeys(columns, "said elsewhere"))
    columns = ["site", "unit", "tail", "facet", "ranks"]
    facets = pd.DataFrame([(B1, 5, "upper", 0, np.array([1]))], columns=columns)
    add_table(planted, "facets", facets, meanings=dict.fromkeys(columns, "said elsewhere"))
    with pytest.raises((SpecError, RunError), match=message):
        found(planted, planted_circuit(), **asked)


def test_another_model_and_a_unit_that_never_fired(planted: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="was probed with other weights"):
        found(planted, loaded("resnet18"), of_class=1)
    with pytest.raises(RunError, match="no exemplars"):
        found(planted, planted_circuit(), unit=f"{B1}:0")
    model = planted_circuit()
    with torch.no_grad():
        model.model.head.weight[1, 2], model.model.head.bias[1] = 0, 0  # type: ignore[union-attr, operator, index]
    run = probed(model, tmp_path / "run")
    with pytest.raises(RunError, match="is not above 0"):
        found(run, model, of_class=int(run.images["prediction"].iloc[0]))
    with pytest.raises(RunError, match="holds no clusters"):
        found(run, model, cluster=0)
