import numpy as np
import pandas as pd
import pytest

from polysem.cli.bench.planted import MODERATE, _choose, _rows, at_noise, scores
from polysem.cli.bench.planted_worlds import Case, circuit_distance, least_correlation
from polysem.data.planted import plant
from polysem.report.planted import scores_figure


@pytest.fixture(scope="module")
def case() -> Case:
    """Ten concepts, each written in a direction of its own by an encoder without much noise."""
    rng = np.random.default_rng(0)
    presence = rng.random((800, 10)) < 0.2
    embeddings = presence @ rng.normal(size=(10, 24)) + 0.2 * rng.normal(size=(800, 24))
    units = plant(presence, noise=MODERATE, per_count=6, seed=1)
    return Case(
        "ideal encoder", MODERATE, units.activations, units.n_concepts, embeddings, presence,
        presence.argmax(1), presence.astype(float), units.weights,
    )  # fmt: skip


@pytest.fixture(scope="module")
def table(case: Case) -> pd.DataFrame:
    rows = pd.DataFrame(_rows(case))
    return rows.assign(headline=rows["score"] == _choose(rows))


def test_every_score_is_held_against_the_truth(table: pd.DataFrame) -> None:
    assert table["score"].tolist() == [score.name for score in scores()]
    numbers = table[["auroc", "spearman", "auroc_chosen", "spearman_chosen"]]
    assert np.isfinite(numbers.to_numpy()).all()
    best = table.set_index("score")
    for name in ("excess_rank", "concept_count"):
        assert best.loc[name, "auroc"] > 0.9
        assert best.loc[name, "spearman"] > 0.8


def test_the_headline_needs_no_labels_and_is_chosen_on_the_other_half(table: pd.DataFrame) -> None:
    assert table.loc[table["headline"], "score"].tolist() == ["excess_rank"]
    moved = table.copy()
    moved.loc[moved["score"] == "clarity", ["auroc_chosen", "spearman_chosen"]] = 1.0
    assert _choose(moved) == "clarity"
    moved.loc[moved["score"] == "concept_count", ["auroc_chosen", "spearman_chosen"]] = 2.0
    assert _choose(moved) == "clarity"
    wide = at_noise(table, MODERATE, "auroc")
    assert list(wide.columns) == ["score", "needs", "headline", "ideal encoder"]


def test_the_plot_draws_every_score_once(table: pd.DataFrame) -> None:
    both = pd.concat([table, table.assign(noise=1.0)])
    figure = scores_figure(both)
    assert len(figure.axes) == 2
    for panel in figure.axes:
        assert sum(len(line.get_xdata()) == 2 for line in panel.lines) >= len(scores())


def test_circuits_that_see_different_things_are_far_apart() -> None:
    rng = np.random.default_rng(0)
    causes = np.zeros((300, 2))
    causes[:40, 0], causes[40:80, 1] = 1, 1
    embeddings = rng.normal(size=(300, 4))
    embeddings[:40, 0] += 20
    activations = causes.sum(1, keepdims=True)
    presence, labels = causes > 0, np.zeros(300, dtype=np.int64)
    case = Case(
        "ideal encoder", 0, activations, np.array([2]), embeddings, presence, labels, causes,
        np.ones((1, 2)),
    )  # fmt: skip
    assert circuit_distance(case, n_exemplars=80)[0] > 5


def test_a_noisy_spliced_unit_need_not_follow_as_closely() -> None:
    assert least_correlation(0) == 0.7
    assert least_correlation(1) == pytest.approx(0.7 / np.sqrt(2))
