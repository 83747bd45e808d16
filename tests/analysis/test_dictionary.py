"""A dictionary finds planted features that no single unit shows, by the same scores."""

from pathlib import Path

import numpy as np
import pytest
from drawn_run import Activations, PlainSource, write_run

from polysem.analysis.dictionary import DICTIONARIES, MEANINGS, dictionary_baseline
from polysem.errors import DataError


def mixed_run(folder: Path, n: int = 160):
    """Three things, one an image; every unit answers to a mixture of all of them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    things = np.eye(3)[labels] * rng.uniform(0.5, 1, (n, 1))
    mixture = rng.uniform(0.3, 1, (3, 12))
    source = PlainSource("plain", [str(i) for i in range(n)], labels, ("a", "b", "c"))
    shown = {"hook_pooled": Activations(things @ mixture + 0.01 * rng.random((n, 12)))}
    return write_run(folder / "run", source, shown)


@pytest.mark.parametrize("name", DICTIONARIES)
def test_features_are_scored_beside_units(name: str, tmp_path: Path) -> None:
    run = mixed_run(tmp_path)
    table = dictionary_baseline(run, DICTIONARIES[name], n_features=6, progress=False)
    assert list(table.columns) == list(MEANINGS)
    assert set(table["score"]) == {"hoyer", "selectivity", "effective_classes"}
    assert set(table["dictionary"]) == {name}
    assert (table["images"] == 80).all()
    assert (table["explained"] > 0.5).all()
    found = table.set_index("score")["difference"]
    assert found["selectivity"] > 0.2
    assert found["effective_classes"] < 0


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the activations of 12 images; a dictionary needs 16"):
        dictionary_baseline(mixed_run(tmp_path, 12), progress=False)
