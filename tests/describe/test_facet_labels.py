"""Names for facets: each thing that a unit answers to, and none where exemplars are random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_run import Activations, PlainSource, write_run
from scipy.stats import kstest

from polysem.analysis.facets import find_facets
from polysem.describe.divide import divide, whitening
from polysem.describe.evidence import false_discovery_rates
from polysem.describe.facet_labels import FACET_LABELS, _Chance, _packed, label_facets
from polysem.describe.labels import label_units
from polysem.describe.naming import METHODS
from polysem.describe.pictures import Crops, Pictures
from polysem.describe.scoring import best_concepts
from polysem.describe.view import View
from polysem.errors import RunError, SpecError
from polysem.report.names import phrases
from polysem.store.run import Run

N_IMAGES, N_CONCEPTS, RANKS = 300, 10, 24
SITE = "blocks.0.mlp.hook_post"
CONCEPTS = [f"concept {number}" for number in range(N_CONCEPTS)]
TEXTS = torch.eye(N_CONCEPTS)


def pictures_of(shown: np.ndarray, seed: int) -> torch.Tensor:
    """Embed one concept a picture, with noise."""
    noise = torch.randn(len(shown), N_CONCEPTS, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(TEXTS[torch.from_numpy(shown)] + 0.15 * noise, dim=1)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Unit 0 fires for concepts 0 and 1 at one place of the image; unit 1 at random; 2 is dead."""
    rng = np.random.default_rng(0)
    values = np.zeros((N_IMAGES, 3, 4, 4))
    shown = np.arange(N_IMAGES) % N_CONCEPTS
    values[:, 0, 1, 2] = np.isin(shown, [0, 1]) + 0.1 * rng.random(N_IMAGES)
    values[:, 1, 2, 2] = rng.random(N_IMAGES)
    source = PlainSource("drawn", [f"image {i}" for i in range(N_IMAGES)])
    activations = {SITE: Activations(values, signed=False)}
    return write_run(tmp_path / "run", source, activations, ranks=RANKS)


def seen_of(run: Run, *, crops: bool) -> Pictures:
    shown = np.arange(N_IMAGES) % N_CONCEPTS
    images = pictures_of(shown, 1)
    if not crops:
        return Pictures(images)
    top = run.units(SITE)["top_image"].sel(tail="upper").to_numpy()
    there = np.isfinite(top)
    values = torch.full((*top.shape, N_CONCEPTS), torch.nan)
    values[torch.from_numpy(there)] = pictures_of(shown[top[there].astype(int)], 2)
    # images say nothing here: only crops tell
    blank = pictures_of(np.random.default_rng(3).integers(N_CONCEPTS, size=N_IMAGES), 3)
    background = pictures_of(np.random.default_rng(4).integers(N_CONCEPTS, size=400), 4)
    return Pictures(blank, {SITE: Crops({"upper": values}, background)})


@pytest.mark.parametrize("crops", [False, True])
def test_both_things_that_a_unit_answers_to_are_named(run: Run, crops: bool) -> None:
    pictures = seen_of(run, crops=crops)
    divide(run, pictures, sites=[SITE], progress=False)
    assert set(run.table("unit_facets")["seen"]) == {"crops" if crops else "images"}
    table = label_facets(run, pictures, TEXTS, CONCEPTS, n_draws=300)
    assert list(table.columns) == list(FACET_LABELS)
    assert set(table["seen"]) == {"crops" if crops else "images"}
    assert 2 not in table["unit"].to_numpy()
    first = table[(table["rank"] == 1) & (table["unit"] == 0)]
    assert set(first["concept"]) == {"concept 0", "concept 1"}
    assert first["named"].all()
    assert first["share"].sum() == pytest.approx(1)
    joined = first.merge(run.table("facets"), on=["site", "unit", "tail", "facet"])
    assert (joined["exemplars"] == joined["n_exemplars"]).all()
    said = phrases(table).set_index("unit").loc[0]
    assert said["facets"] == 2
    assert "concept 0" in said["names"] and "concept 1" in said["names"] and " · " in said["names"]


def test_units_named_by_crops_say_so_and_are_tested_without_their_exemplars(run: Run) -> None:
    pictures = seen_of(run, crops=True)
    table = label_units(run, pictures, TEXTS, CONCEPTS, n_draws=200)
    best = table[(table["rank"] == 1) & (table["unit"] == 0)].iloc[0]
    assert (best["seen"], best["method"]) == ("crops", "soft-wpmi")
    assert best["concept"] in ("concept 0", "concept 1") and best["named"]
    by_images = label_units(run, pictures, TEXTS, CONCEPTS, seen="images", n_draws=200)
    assert set(by_images["seen"]) == {"images"}
    with pytest.raises(SpecError, match="cannot see crops"):
        label_units(run, pictures, TEXTS, CONCEPTS, method="auroc", seen="crops")


@pytest.mark.parametrize("method", ["soft-wpmi", "mean-embedding"])
def test_facets_of_random_exemplars_are_named_as_often_as_chance_has_it(method: str) -> None:
    generator = torch.Generator().manual_seed(1)
    # images come in kinds, so that any exemplars fall into facets
    kinds = 5 * torch.randn(6, 16, generator=generator)
    images = kinds[torch.randint(6, (500,), generator=generator)]
    images = images + torch.randn(500, 16, generator=generator)
    view = View(images, torch.randn(60, 16, generator=generator), n_background=400)
    exemplars = torch.stack([torch.randperm(400, generator=generator)[:16] for _ in range(400)])
    seen = view.images @ whitening(view.images[:400])
    group = find_facets(seen[exemplars].numpy(), n_resamples=0).group
    assert (group.max(1) > 0).mean() > 0.3
    given = _packed(torch.cat([
        exemplars[held].masked_fill(torch.from_numpy(group[held] != facet), -1)
        for facet in range(5) if (held := (group == facet).any(1)).any()
    ]))  # fmt: skip
    chance = _Chance.drawn(
        METHODS[method],
        view,
        np.full(400, 16),
        n_ranks=exemplars.shape[1],
        most=5,
        n_draws=1000,
        chunk=256,
        seed=0,
    )
    best = best_concepts(METHODS[method].function(given, view), view, 1)[0].double().numpy()
    p = chance.p(best, given)[:, 0]
    assert kstest(p, "uniform").pvalue > 0.01
    assert (false_discovery_rates(p) <= 0.05).mean() <= 0.05


def test_whitening_makes_all_directions_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    stretched = torch.randn(4000, 5, generator=generator).double() * torch.tensor([9, 3, 1, 1, 1])
    white = stretched @ whitening(stretched)
    covariance = np.cov(white.numpy().T)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.02
    variance = np.array([81, 9, 1, 1, 1])
    expected = variance / (variance + 0.1 * variance.mean())
    np.testing.assert_allclose(np.diag(covariance), expected, rtol=0.05)


def test_facets_of_other_sites_stay_and_what_is_not_there_is_said(run: Run) -> None:
    pictures = seen_of(run, crops=False)
    with pytest.raises(SpecError, match="a facet is a group of exemplars"):
        label_facets(run, pictures, TEXTS, CONCEPTS, method="auroc")
    divide(run, pictures, sites=[SITE], progress=False)
    kept = (run.path / "tables" / "facets.parquet").stat().st_mtime_ns
    divide(run, pictures, sites=[SITE], progress=False)
    assert (run.path / "tables" / "facets.parquet").stat().st_mtime_ns == kept
    table = run.table("facets")
    table["site"] = "elsewhere"
    table.to_parquet(run.path / "tables" / "facets.parquet")
    with pytest.raises(RunError, match=r"no facets at blocks\.0\.mlp\.hook_post"):
        label_facets(run, pictures, TEXTS, CONCEPTS)


def test_sites_whose_units_have_more_exemplars_than_the_first_are_named(tmp_path: Path) -> None:
    """Whole images are the same at all sites, and so is chance; numbers of exemplars are not."""
    rng = np.random.default_rng(2)
    rare, common = np.zeros((N_IMAGES, 1, 1, 1)), rng.random((N_IMAGES, 1, 1, 1))
    rare[:9] = rng.random((9, 1, 1, 1))
    common[::N_CONCEPTS] += 1  # one concept, hence one facet
    source = PlainSource("drawn", [f"image {i}" for i in range(N_IMAGES)])
    activations = {
        SITE: Activations(rare, signed=False),
        "blocks.1.mlp.hook_post": Activations(common, signed=False),
    }
    run = write_run(tmp_path / "run", source, activations, ranks=RANKS)
    pictures = seen_of(run, crops=False)
    divide(run, pictures, sites=run.sites, progress=False)
    table = label_facets(run, pictures, TEXTS, CONCEPTS, n_draws=50)
    assert table.groupby("site")["n_exemplars"].max().tolist() == [9, RANKS]
