"""The schema: every array of a run has named axes and says what it means."""

import numpy as np

from polysem.store.schema import EMBEDDINGS, HEADS, UNITS, dataset


def test_every_variable_has_words_for_its_axes_and_a_meaning() -> None:
    words = {
        "count", "pool", "unit", "q", "class", "sample", "tail", "rank", "y", "x", "image",
        "layer", "head", "dim", "replicate",
    }  # fmt: skip
    for variable in (*UNITS.values(), *HEADS.values(), *EMBEDDINGS.values()):
        assert set(variable.dims) <= words
        assert variable.meaning


def test_dataset_names_axes_and_keeps_meanings() -> None:
    made = dataset(
        UNITS,
        {"mean": np.ones((2, 3)), "dead": [True, False, False]},
        {"pool": ["max", "mean"], "q": [0.5]},
    )
    assert made["mean"].dims == ("pool", "unit")
    assert made["dead"].attrs["long_name"] == UNITS["dead"].meaning
    assert made["mean"].sel(pool="max").shape == (3,)
    assert made["pool"].dtype == object  # a fixed-width string has no place in zarr's format 3
    assert made["q"].dtype == float
