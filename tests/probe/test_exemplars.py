"""Top-k exemplars against a full sort, ties and all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.probe.exemplars import Exemplars

UNITS, POSITIONS = 3, 5


def maps_of(n: int, seed: int, *, ties: bool) -> torch.Tensor:
    """[image, unit, position]; with ties, many activations are equal and some are zero."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, UNITS, POSITIONS))
    return torch.from_numpy(np.round(values) if ties else values).float()


def brute_force(
    maps: torch.Tensor, k: int, *, lower: bool, only_firing: bool
) -> list[list[tuple[float, int]]]:
    pooled = maps.amin(2) if lower else maps.amax(2)
    best = []
    for unit in range(UNITS):
        pairs = [(v, i) for i, v in enumerate(pooled[:, unit].tolist())]
        if only_firing:
            pairs = [(v, i) for v, i in pairs if v > 0]
        best.append(sorted(pairs, key=lambda p: (p[0] if lower else -p[0], p[1]))[:k])
    return best


def collect(
    maps: torch.Tensor, images: torch.Tensor, k: int, batch: int, **options: bool
) -> Exemplars:
    exemplars = Exemplars(k, UNITS, POSITIONS, **options)
    pooled = maps.amin(2) if options.get("lower") else maps.amax(2)
    for rows in torch.arange(len(maps)).split(batch):
        exemplars.update(pooled[rows], images[rows], maps[rows])
    return exemplars


def check(exemplars: Exemplars, maps: torch.Tensor, k: int, **options: bool) -> None:
    values, images, positions, kept = exemplars.ranked()
    for unit, expected in enumerate(brute_force(maps, k, **options)):
        found = len(expected)
        assert [(v, int(i)) for v, i in zip(values[unit, :found].tolist(), images[unit, :found],
                                            strict=True)] == expected  # fmt: skip
        assert values[unit, found:].isnan().all()
        assert images[unit, found:].isnan().all()
        assert kept[unit, found:].isnan().all()
        for rank, (value, image) in enumerate(expected):
            assert torch.equal(kept[unit, rank], maps[image, unit].half())
            assert maps[image, unit, int(positions[unit, rank])] == value


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 25), k=st.integers(1, 9), batch=st.integers(1, 11), seed=st.integers(0, 999),
    ties=st.booleans(), lower=st.booleans(), only_firing=st.booleans(),
)  # fmt: skip
def test_exemplars_equal_a_full_sort(
    n: int, k: int, batch: int, seed: int, ties: bool, lower: bool, only_firing: bool
) -> None:
    options = {"lower": lower, "only_firing": only_firing and not lower}
    maps = maps_of(n, seed, ties=ties)
    check(collect(maps, torch.arange(n), k, batch, **options), maps, k, **options)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("lower", "only_firing"), [(False, False), (True, False), (False, True)])
def test_the_few_that_may_enter_late_are_found_in_any_order(
    ties: bool, lower: bool, only_firing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = []
    best_of_few = Exemplars._best_of_few
    monkeypatch.setattr(
        Exemplars, "_best_of_few", lambda *given: few.append(1) or best_of_few(*given)
    )
    maps = maps_of(1500, 7, ties=ties)
    options = {"lower": lower, "only_firing": only_firing}
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    for images in (torch.arange(1500), order):
        found = collect(maps[images], images, 4, 64, **options)
        check(found, maps, 4, **options)
    assert few


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999), cuts=st.tuples(st.integers(0, 24), st.integers(0, 24)),
    first=st.booleans(),
)  # fmt: skip
def test_merge_is_associative_and_order_free(seed: int, cuts: tuple[int, int], first: bool) -> None:
    maps, k = maps_of(24, seed, ties=True), 6
    order = torch.randperm(24, generator=torch.manual_seed(seed))
    a, b = sorted(cuts)
    parts = [
        collect(maps[rows], rows, k, 5, lower=False, only_firing=False)
        for rows in (order[:a], order[a:b], order[b:])
    ]
    if first:
        parts[0].merge(parts[1])
        parts[0].merge(parts[2])
        merged = parts[0]
    else:
        parts[1].merge(parts[2])
        parts[1].merge(parts[0])
        merged = parts[1]
    check(merged, maps, k, lower=False, only_firing=False)


def test_dense_capture_equals_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = maps_of(30, 3, ties=True)
    sparse = collect(maps, torch.arange(30), 4, 8)
    monkeypatch.setattr(Exemplars, "_capture_sparse", Exemplars._capture_dense)
    dense = collect(maps, torch.arange(30), 4, 8)
    for mine, theirs in zip(sparse.ranked(), dense.ranked(), strict=True):
        assert torch.equal(mine.nan_to_num(99), theirs.nan_to_num(99))


def test_extreme_values_and_large_indices_survive() -> None:
    values = torch.tensor([[-0.0], [0.0], [3.4e38], [-3.4e38], [1e-45]])
    images = torch.tensor([2**29 - 1, 5, 7, 2**28, 0])
    exemplars = Exemplars(5, 1, 0)
    exemplars.update(values, images)
    found, where, _, maps = exemplars.ranked()
    order = [2, 4, 1, 0, 3]
    assert torch.equal(found[0], values[order, 0].double() + 0.0)
    assert where[0].long().tolist() == images[order].tolist()
    assert maps.shape == (1, 5, 0)


def test_maps_beyond_half_precision_are_clamped() -> None:
    maps = torch.full((1, 1, 2), 1e6)
    exemplars = Exemplars(1, 1, 2)
    exemplars.update(maps.amax(2), torch.tensor([0]), maps)
    assert exemplars.ranked()[3].max() == torch.finfo(torch.float16).max
