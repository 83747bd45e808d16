"""Births and changes against their slow definitions."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polysem.analysis.births import births, label_changes, same_as_last

LABELS = st.lists(
    st.lists(st.sampled_from(["cat", "dog", None]), min_size=4, max_size=4), min_size=1, max_size=5
)


def slow_birth(holds: list[bool]) -> int:
    for start in range(len(holds)):
        if all(holds[start:]):
            return start
    return -1


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_births_are_where_it_holds_to_the_end(holds: list[list[bool]]) -> None:
    assert births(holds).tolist() == [slow_birth(row) for row in holds]


@given(LABELS)
def test_labels_change_and_last(given_labels: list[list[str | None]]) -> None:
    labels = np.array(given_labels, dtype=object)
    changed, same = label_changes(labels), same_as_last(labels)
    for row, mine, last in zip(given_labels, changed, same, strict=True):
        assert mine.tolist() == [a != b for a, b in pairwise(row)]
        assert last.tolist() == [a is not None and a == row[-1] for a in row]


def test_missing_numbers_are_no_label() -> None:
    labels = np.array([["cat", np.nan, None, np.nan]], dtype=object)
    assert label_changes(labels).tolist() == [[True, False, False]]
    assert not same_as_last(labels).any()
