"""Splits are found by any usual word, and never guessed."""

from __future__ import annotations

import pytest

from polysem.data.splits import choose_splits, is_split
from polysem.errors import SpecError

THREE = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("available", "wanted", "chosen"),
    [
        (THREE, "test", ["test"]),
        (THREE, "val", ["validation"]),
        (THREE, "dev", ["validation"]),
        (THREE, "all", list(THREE)),
        (("test",), None, ["test"]),
        (("unsupervised", "train"), "unsupervised", ["unsupervised"]),
        (("val", "valid"), "valid", ["valid"]),
        (("Train", "Test"), "train", ["Train"]),
    ],
)
def test_choice(available: tuple[str, ...], wanted: str | None, chosen: list[str]) -> None:
    assert choose_splits("spec", available, wanted) == chosen


def test_several_without_a_wish_are_refused() -> None:
    with pytest.raises(SpecError, match=r"spec has the splits train, .*add '\?split=test'"):
        choose_splits("spec", THREE, None)


def test_unknown_split_gives_near_matches() -> None:
    with pytest.raises(SpecError, match=r"no split 'tset'.*did you mean 'test'"):
        choose_splits("spec", THREE, "tset")
    with pytest.raises(SpecError, match="not divided into splits"):
        choose_splits("spec", (), "test")


def test_words() -> None:
    assert all(map(is_split, ("train", "TEST", "val", "validation")))
    assert not any(map(is_split, ("cats", "trained", "")))
