"""One unit taken out of a run: its numbers are the run's, its words say only what is known."""

from pathlib import Path

import numpy as np
import pytest
from drawn_run import PlainSource, random_activations, write_run

from polysem.errors import SpecError
from polysem.report.unit import aspect, captions, class_name, described, open_unit
from polysem.store.run import Run

N = 13
LABELS = np.array([0, 1, 3] * 4 + [0])
CLASSES = ("ant", "bee", "cat", "dog")
MLP = "blocks.0.mlp.hook_post"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    source = PlainSource("photos", [f"{i}.png" for i in range(N)], LABELS, CLASSES)
    predictions = np.where(np.arange(N) == 1, 2, LABELS)
    path = tmp_path_factory.mktemp("runs") / "a"
    return write_run(path, source, random_activations(N), predictions=predictions, size=(32, 48))


def test_exemplars_are_ranked_and_have_maps(run: Run) -> None:
    values = random_activations(N)[MLP].values[:, 4]
    unit = open_unit(run, MLP, 4)
    assert (unit.name, unit.pools, unit.tails) == (
        "unit 4", ["max", "mean", "min"], ["upper", "lower"],
    )  # fmt: skip
    upper, lower = unit.exemplars("upper", 3), unit.exemplars("lower", 99)
    assert [e.image for e in upper] == list(np.argsort(-values.max((1, 2)))[:3])
    assert [e.image for e in lower] == list(np.argsort(values.min((1, 2)))[:8])
    for exemplar in upper:
        np.testing.assert_allclose(exemplar.activation, values[exemplar.image], rtol=2e-3)
    assert unit.base == pytest.approx(values.mean(), rel=1e-6)
    assert unit.get("max", "max") == pytest.approx(values.max())


def test_few_exemplars_and_none(run: Run) -> None:
    assert len(open_unit(run, "blocks.1.mlp.hook_post", 3).exemplars("upper", 16)) == 3
    dead = open_unit(run, MLP, 2)
    assert dead.dead and not open_unit(run, MLP, 1).dead
    head = open_unit(run, "blocks.0.attn.hook_z", 1)
    assert (head.name, head.tails) == ("head 1", ["upper"])
    pooled = open_unit(run, "hook_pooled", 6)
    assert pooled.pool("upper") == pooled.pool("lower") == "value"
    assert pooled.exemplars("lower", 1)[0].activation is None


def test_class_means_leave_empty_classes_missing(run: Run) -> None:
    values = random_activations(N)[MLP].values[:, 0].max((1, 2))
    means = open_unit(run, MLP, 0).class_means("max")
    expected = [values[label == LABELS].mean() if label != 2 else np.nan for label in range(4)]
    np.testing.assert_allclose(means, expected, rtol=1e-6)


def test_quantiles_that_the_run_lacks_are_missing(run: Run) -> None:
    values = random_activations(N)["hook_pooled"].values[:, 0]
    median, odd = open_unit(run, "hook_pooled", 0).quantiles("value", 0.5, 0.123)
    assert median == pytest.approx(np.sort(values)[6], rel=1e-6)
    assert np.isnan(odd)


@pytest.mark.parametrize("unit", [-1, 5])
def test_no_such_unit(run: Run, unit: int) -> None:
    with pytest.raises(SpecError, match=rf"has no unit {unit}: .* 0 to 4"):
        open_unit(run, MLP, unit)


def test_captions_of_comparable_outputs(run: Run) -> None:
    found = captions(run, [1, 0])
    assert list(found) == [1, 0]
    assert (found[0].label, found[0].prediction, found[0].correct) == ("ant", "ant", True)
    assert (found[1].label, found[1].prediction, found[1].correct) == ("bee", "cat", False)
    assert found[1].key == "1.png"
    assert captions(run, []) == {}
    gone = captions(run, [99])[99]
    assert (gone.key, gone.label, gone.prediction, gone.correct) == ("image 99", None, None, None)


def test_captions_of_other_outputs(tmp_path: Path) -> None:
    source = PlainSource("photos", [f"{i}.png" for i in range(N)])
    shown = {"hook_pooled": random_activations(N)["hook_pooled"]}
    numbers = np.arange(N)
    named = write_run(
        tmp_path / "a", source, shown, predictions=numbers, outputs=[f"o{i}" for i in range(5)]
    )
    assert captions(named, [3])[3].prediction == "o3"
    assert captions(named, [7])[7].prediction == "class 7"
    unnamed = write_run(tmp_path / "b", source, shown, predictions=numbers)
    assert captions(unnamed, [3])[3].prediction is None  # "class 3" would tell nobody anything


def test_words(run: Run) -> None:
    assert described(run) == "bcos_vit_test, 13 images of photos"
    assert aspect(run) == pytest.approx(2 / 3)
    assert class_name(1, None) == class_name(1, ["a"]) == class_name(1, ["a", " "]) == "class 1"
