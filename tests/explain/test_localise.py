"""Methods compared on a model whose evidence is known: the right one must win everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from studied import colour_model, gradient, true_evidence
from test_pictures import Photos
from torch import Tensor

from polysem.data.shapes import Shapes
from polysem.errors import DataError, NonFiniteError, SpecError
from polysem.explain.comparison import grid_scores, prepare
from polysem.explain.controls import uniform
from polysem.explain.localise import MEANINGS, Localisation, localise
from polysem.explain.pictures import read_pictures

DATA = Shapes("test", n=120, size=32, label="colour")


def compare(loaded: Any = None, data: Any = DATA, **options: Any) -> Localisation:
    options = {
        "methods": {"evidence": true_evidence, "gradient": gradient},
        "n_images": 12, "n_grids": 4, "limit": 120, "steps": 8, "n_shown": 5, "progress": False,
        **options,
    }  # fmt: skip
    return localise(loaded or colour_model(), data, **options)


@pytest.fixture(scope="module")
def found() -> Localisation:
    return compare(grids=(2,))


def test_the_table_says_what_it_holds(found: Localisation) -> None:
    table = found.table
    assert set(table.columns) == set(MEANINGS) == set(table.attrs["columns"])
    assert list(table["method"].unique()) == ["evidence", "gradient", "edges", "noise", "uniform"]
    assert set(table["metric"]) == {"grid_2x2", "mask_energy", "deletion", "insertion"}
    assert len(table) == 5 * 4
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert table["value"].between(0, 1).all()
    assert set(table.loc[table["control"], "method"]) == {"edges", "noise", "uniform"}
    assert set(table.loc[table["metric"] == "grid_2x2", "n"]) == {4}
    assert set(table.loc[table["metric"] != "grid_2x2", "n"]) == {12}


def test_true_evidence_beats_all_controls(found: Localisation) -> None:
    wide = found.table.pivot(index="method", columns="metric", values="value")
    rest = wide.drop(index=["evidence", "gradient"])
    assert wide.loc["evidence", "grid_2x2"] > 0.8
    for metric in ("grid_2x2", "mask_energy", "insertion"):
        assert (rest[metric] < wide.loc["evidence", metric] - 0.05).all(), metric
    assert (rest["deletion"] > wide.loc["evidence", "deletion"] + 0.1).all()


def test_a_uniform_map_gets_what_chance_gets(found: Localisation) -> None:
    chance = found.table[found.table["method"] == "uniform"].set_index("metric")
    for metric in ("grid_2x2", "mask_energy"):
        assert chance.loc[metric, "value"] == pytest.approx(chance.loc[metric, "chance"])
    assert chance.loc["grid_2x2", "chance"] == 0.25
    assert np.isnan(chance.loc["deletion", "chance"])


def test_the_table_is_the_mean_of_the_scores(found: Localisation) -> None:
    means = found.scores.groupby(["method", "metric"])["value"].mean()
    for row in found.table.itertuples():
        assert means[row.method, row.metric] == pytest.approx(row.value)
    energy = found.scores[found.scores["metric"] == "mask_energy"]
    assert set(energy["key"]) <= set(DATA.keys)
    curve = found.curves[(found.curves["method"] == "evidence")]
    deleted = curve[curve["curve"] == "deletion"]
    assert deleted["share"].tolist() == np.linspace(0, 1, 9).tolist()
    area = np.trapezoid(deleted["confidence"], deleted["share"])
    assert area == pytest.approx(means["evidence", "deletion"], rel=1e-5)


def test_the_gallery_shows_many_classes(found: Localisation) -> None:
    gallery = found.gallery
    assert gallery.pictures.shape == (5, 32, 32, 3)
    assert list(gallery.maps) == ["evidence", "gradient"]
    assert gallery.maps["evidence"].shape == (5, 32, 32)
    assert len(set(gallery.titles)) == 5
    assert gallery.masks is not None
    inside = (gallery.maps["evidence"] * gallery.masks).sum((1, 2))
    assert (inside / gallery.maps["evidence"].sum((1, 2)) > 0.5).all()


def test_the_same_seed_gives_the_same_table(found: Localisation) -> None:
    again = compare(grids=(2,), batch_size=5)
    np.testing.assert_allclose(again.table["value"], found.table["value"], atol=0.02)
    other = compare(grids=(), seed=4, data="shapes:test?label=colour", limit=30)
    assert set(other.table["metric"]) == {"mask_energy", "deletion", "insertion"}


def test_a_model_of_one_size_gets_shrunk_pictures() -> None:
    found = compare(colour_model(fixed=True), methods={"evidence": true_evidence}, grids=(2,))
    assert "cells of 16 × 16 px" in found.notes[0]
    score = found.table.set_index(["method", "metric"])["value"]["evidence", "grid_2x2"]
    assert score > 0.7
    full = compare(methods={"evidence": true_evidence}, grids=(2,))
    assert not any("cells" in note for note in full.notes)


def test_cells_get_their_own_class() -> None:
    loaded = colour_model()
    comparison = prepare(
        loaded, read_pictures(DATA, loaded.transform, limit=None), grids=(2,), n_images=3,
        n_grids=5, batch_size=7, seed=0,
    )  # fmt: skip
    assert grid_scores(comparison, uniform, 2).tolist() == [[0.25] * 4] * 5
    scores = grid_scores(comparison, true_evidence, 2)
    assert scores.shape == (5, 4)
    assert (scores > 0.5).all()


def test_data_without_outlines_has_no_mask_energy() -> None:
    photos = Photos(8, labels=list(range(8)))
    loaded = replace(colour_model(), classes=None)
    with torch.no_grad():  # grey pictures of growing brightness, and a model that tells them apart
        loaded.model.colours.copy_(torch.arange(8)[:, None].expand(8, 3) / 255)

    def flat(model: Any, images: Tensor, target: Any) -> Tensor:
        return images.sum(1)

    found = compare(loaded, photos, methods={"flat": flat}, grids=(), n_shown=3)
    assert found.gallery.masks is None
    assert found.gallery.titles[0].startswith("class ")
    assert "no mask energy" in found.notes[0]
    assert set(found.table["metric"]) == {"deletion", "insertion"}


def test_what_cannot_be_done_is_said_in_one_sentence() -> None:
    def broken(model: Any, images: Tensor, target: Any) -> Tensor:
        return images.sum(1) * torch.nan

    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        compare(methods={"broken": broken})
    with pytest.raises(SpecError, match="no method is called 'evidnce'"):
        compare(methods="evidnce")
    with pytest.raises(SpecError, match="n_images must be at least 1"):
        compare(n_images=0)
    with pytest.raises(SpecError, match="odd number"):
        compare(smooth=2)
    with pytest.raises(DataError, match="no labels"):
        compare(data=Photos())
    with pytest.raises(DataError, match="needs 9 classes, and only 8"):
        compare(grids=(3,))
    wrong = Photos(8, labels=[7] * 8)  # almost black, and not pink
    with pytest.raises(DataError, match="classifies none of 8"):
        compare(replace(colour_model(), classes=None), wrong, grids=())


def test_all_methods_of_a_network() -> None:
    found = compare(methods="all", grids=(), n_images=2, limit=20, steps=2)
    assert "input_gradient" in set(found.table["method"])
    assert any("left out" in note and "bcos" in note for note in found.notes)
