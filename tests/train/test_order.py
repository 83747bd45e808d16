from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polysem.train.order import (
    Part,
    balanced_order,
    epoch_order,
    generator_for,
    parts,
    permuted,
    seeded,
)


def test_an_order_shows_every_image_once() -> None:
    order = epoch_order(3, 1, 50)
    assert sorted(order.tolist()) == list(range(50))
    assert torch.equal(order, epoch_order(3, 1, 50))
    assert not torch.equal(order, epoch_order(3, 2, 50))
    assert not torch.equal(order, epoch_order(4, 1, 50))


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 5),
)
def test_a_balanced_order_shows_classes_and_their_images_equally_often(
    counts: list[int], seed: int, epoch: int
) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator_for(seed, "mess", 0))]
    order = balanced_order(seed, epoch, labels)
    assert len(order) == len(labels)
    shown = torch.bincount(labels[order], minlength=len(counts))[torch.tensor(counts) > 0]
    assert int(shown.max() - shown.min()) <= 1
    times = torch.bincount(order, minlength=len(labels))
    for number in labels.unique():
        of_class = times[labels == number]
        assert int(of_class.max() - of_class.min()) <= 1
    assert torch.equal(order, balanced_order(seed, epoch, labels))


@given(
    n_images=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    n_processes=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    first=st.integers(0, 7),
)
def test_parts_of_all_processes_make_up_the_steps(
    n_images: int, batch_size: int, n_processes: int, accumulate: int, first: int
) -> None:
    epoch_steps = max(1, n_images // batch_size)
    shares = [
        list(
            parts(
                partial(epoch_order, 5, n_images=n_images),
                steps=range(first, 9),
                epoch_steps=epoch_steps,
                batch_size=batch_size,
                process=process,
                n_processes=n_processes,
                accumulate=accumulate,
            )
        )
        for process in range(n_processes)
    ]
    for step in range(first, 9):
        of_step = [part for share in shares for part in share if part.step == step]
        assert len(of_step) == n_processes * accumulate
        epoch, place = divmod(step, epoch_steps)
        whole = epoch_order(5, epoch, n_images)[place * batch_size : (place + 1) * batch_size]
        assert torch.equal(torch.cat([part.indices for part in of_step]), whole)
        assert {part.total for part in of_step} == {len(whole)}
        for part in of_step:
            assert torch.equal(whole[part.here], part.indices)
        sizes = [len(part) for part in of_step]
        assert max(sizes) - min(sizes) <= 1


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=40), seed=st.integers(0, 9))
def test_permuted_labels_are_the_same_labels(labels: list[int], seed: int) -> None:
    dealt = permuted(torch.tensor(labels), seed)
    assert sorted(dealt.tolist()) == sorted(labels)
    assert torch.equal(dealt, permuted(torch.tensor(labels), seed))


def test_permuted_labels_tell_nothing_of_the_true_ones() -> None:
    labels = torch.arange(4000) % 10
    same = (permuted(labels, 1) == labels).float().mean()
    assert 0.07 < float(same) < 0.13
    assert not torch.equal(permuted(labels, 1), permuted(labels, 2))


def test_generators_differ_by_seed_purpose_and_number() -> None:
    keys = [(0, "order", 0), (1, "order", 0), (0, "augment", 0), (0, "order", 1), (2**62, "o", 0)]
    drawn = {float(torch.rand((), generator=generator_for(*key))) for key in keys}
    assert len(drawn) == len(keys)


def test_a_seed_is_lent_and_taken_back() -> None:
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()

    def draw(number: int) -> tuple[float, float]:
        with seeded(4, "mixup", number):
            return random.random(), float(np.random.rand())

    assert draw(3) == draw(3) != draw(2)
    with pytest.raises(KeyError), seeded(4, "mixup", 0):
        raise KeyError
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_a_part_knows_its_place() -> None:
    part = Part(step=4, indices=torch.tensor([7, 3]), first=2, total=9)
    assert len(part) == 2
    assert list(range(9))[part.here] == [2, 3]
