"""Names from a run: the right ones, for both tails, with evidence on images not looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_run import Activations, PlainSource, write_run
from studied_run import studied_run, study_arrays
from torch import Tensor

from polysem.describe.answers import read_answers
from polysem.describe.labels import HEAD_LABELS, LABELS, label_heads, label_units
from polysem.describe.naming import METHODS
from polysem.describe.pictures import Pictures
from polysem.errors import DataError, SpecError
from polysem.store.run import Run

N_IMAGES, N_CONCEPTS, DIM = 240, 12, 8
SITE = "blocks.0.mlp.hook_post"
CONCEPTS = [f"concept {number}" for number in range(N_CONCEPTS)]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGES = torch.nn.functional.normalize(drawn(N_IMAGES, DIM, seed=0), dim=1)
TEXTS = torch.nn.functional.normalize(drawn(N_CONCEPTS, DIM, seed=1), dim=1)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Units 0 and 1 follow concepts 0 and 1; 2 also dislikes concept 5; 3 is dead; 4 is noise."""
    like = (IMAGES @ TEXTS.T).numpy()
    noise = drawn(N_IMAGES, seed=2).numpy()
    units = np.stack([like[:, 0], like[:, 1], like[:, 2] - 2 * like[:, 5], 0 * noise, noise], 1)
    source = PlainSource("drawn", [f"image {i}" for i in range(N_IMAGES + 1)])
    values = np.repeat(units[:, :, None, None], 2, axis=2)
    return write_run(
        tmp_path / "run",
        source,
        {SITE: Activations(values), "hook_pooled": Activations(units.clip(min=0), signed=False)},
        skipped=[7],
        ranks=16,
    )


@pytest.mark.parametrize("method", METHODS)
def test_units_are_called_by_what_they_follow(run: Run, method: str) -> None:
    images, texts = IMAGES, TEXTS
    if method == "rank-reorder":  # it needs mean similarities above 0
        images, texts = (torch.cat([x, torch.ones(len(x), 1)], dim=1) for x in (IMAGES, TEXTS))
    table = label_units(
        run, Pictures(images), texts, CONCEPTS, sites=[SITE], method=method, n_draws=200
    )
    assert list(table.columns) == list(LABELS)
    best = table[table["rank"] == 1].set_index(["tail", "unit"])
    assert best.loc[("upper", 0), "concept"] == "concept 0"
    assert best.loc[("upper", 1), "concept"] == "concept 1"
    assert best.loc[("lower", 2), "concept"] == "concept 5"
    assert best.loc[("upper", 0), "auroc"] > 0.95
    assert best.loc[("upper", 0), "rank_correlation"] > 0.95
    assert abs(best.loc[("upper", 4), "rank_correlation"]) < 0.3
    assert 3 not in table["unit"].to_numpy()
    if method != "rank-reorder":  # which compares orders within a dozen images only
        assert best.loc[("upper", 0), "named"]
        assert not best.loc[("upper", 4), "named"]
    assert (table.groupby(["site", "tail", "unit"]).size() == 5).all()


def test_ranks_fall_and_only_the_first_is_tested(run: Run) -> None:
    table = label_units(run, Pictures(IMAGES), TEXTS, CONCEPTS, top=3, n_draws=50)
    for _, unit in table.groupby(["site", "tail", "unit"]):
        assert unit["rank"].tolist() == [1, 2, 3]
        assert unit["score"].is_monotonic_decreasing
        assert unit["p_value"].is_monotonic_increasing
        assert unit["q_value"].isna().tolist() == [False, True, True]
        assert unit["named"].nunique() == 1
    assert set(table["site"]) == {SITE, "hook_pooled"}


def test_held_out_images_are_no_exemplars(run: Run) -> None:
    upper, lower = read_answers(run, SITE)
    rows = np.flatnonzero(run.images["image"] == 8)  # one image was skipped
    assert rows == 7
    for answers in (upper, lower):
        for unit in (0, 1, 2, 4):
            tested = answers.tested_on[~answers.held_out[:, unit].isnan()]
            assert not set(tested.tolist()) & set(answers.exemplars[unit].tolist())
            assert len(tested) == N_IMAGES - 16
            other = answers.tested_on[~answers.less_found[:, unit].isnan()]
            assert not set(other.tolist()) & set(answers.found_on.tolist())
            assert N_IMAGES / 2 - 16 <= len(other) <= N_IMAGES / 2
    there = upper.found_on == upper.exemplars[1, 0]
    assert not there.any() or upper.activations[there, 1] == upper.activations[:, 1].max()


@pytest.mark.parametrize("method", ["auroc", "cosine"])
def test_noise_is_not_tested_on_what_it_was_named_by(run: Run, method: str) -> None:
    """Many random concepts fit noise well where they are found, and at chance elsewhere."""
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(N_IMAGES, 60, 1, 1))
    source = PlainSource("drawn", [f"image {i}" for i in range(N_IMAGES)])
    noisy = write_run(run.path.parent / "noise", source, {SITE: Activations(noise)}, ranks=8)
    images = torch.nn.functional.normalize(drawn(N_IMAGES, 64, seed=5), dim=1)
    texts = drawn(300, 64, seed=6)
    names = [str(number) for number in range(300)]
    table = label_units(noisy, Pictures(images), texts, names, method=method, n_draws=20)
    best = table[table["rank"] == 1]
    assert abs(best["rank_correlation"].mean()) < 0.03  # 0.13 and more on the same images
    assert abs(best["auroc"].mean() - 0.5) < 0.05


def test_one_concept_is_a_vocabulary(run: Run) -> None:
    table = label_units(run, Pictures(IMAGES), TEXTS[:1], CONCEPTS[:1], n_draws=20)
    assert set(table["concept"]) == {"concept 0"}
    assert set(table["rank"]) == {1}


@pytest.mark.parametrize("n_images", [1, 2, 5])
def test_fewer_images_than_the_probe_ranks_are_named(tmp_path: Path, n_images: int) -> None:
    values = np.random.default_rng(0).normal(size=(n_images, 3, 1, 1))
    source = PlainSource("drawn", [f"image {i}" for i in range(n_images)])
    run = write_run(tmp_path / "run", source, {SITE: Activations(values)}, ranks=8)
    for method in METHODS:
        table = label_units(
            run, Pictures(IMAGES[:n_images]), TEXTS, CONCEPTS, method=method, n_draws=9
        )
        assert not table["named"].any()  # so few images can show nothing


def test_what_does_not_belong_together_is_refused(run: Run) -> None:
    with pytest.raises(SpecError, match=r"no method 'soft-wpm'; did you mean 'soft-wpmi'"):
        label_units(run, Pictures(IMAGES), TEXTS, CONCEPTS, method="soft-wpm")
    with pytest.raises(DataError, match="239 image embeddings for 240 images"):
        label_units(run, Pictures(IMAGES[1:]), TEXTS, CONCEPTS)
    with pytest.raises(SpecError, match="no site"):
        label_units(run, Pictures(IMAGES), TEXTS, CONCEPTS, sites=["blocks.9.mlp.hook_post"])


def test_heads_are_named_by_what_they_write_and_by_what_needs_them(tmp_path: Path) -> None:
    like = (IMAGES @ TEXTS.T).numpy()
    arrays = study_arrays(N_IMAGES, 2, 2)
    arrays["cost_zero"][:, 1, 1] = arrays["cost"] + like[:, 4]
    run = studied_run(tmp_path / "run", arrays)
    table = label_heads(run, Pictures(IMAGES), TEXTS, CONCEPTS, n_draws=200)
    assert list(table.columns) == list(HEAD_LABELS)
    assert set(table["by"]) == {"norm", "importance"}
    best = table[table["rank"] == 1].set_index(["by", "layer", "head"])
    assert best.loc[("importance", 1, 1), "concept"] == "concept 4"
    assert best.loc[("importance", 1, 1), "named"]
    assert best.loc[("importance", 1, 1), "auroc"] > 0.9
    assert not best.loc[("importance", 0, 0), "named"]
