"""Comparisons of arms whose difference is known: how often one is found, and how often covered.

Values of units are drawn with effects of the network (the seed), of the layer, of the network at
the layer, of the arm at the layer, and of the unit. All go through the code that compares runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from polysem.analysis.effect_rows import effect_of
from polysem.analysis.effects import Cell
from polysem.analysis.measures import Measure
from polysem.analysis.permutation import least_p

__all__ = ["COLUMNS", "WORLDS", "World", "simulate"]

Floats = npt.NDArray[np.float64]

LEVEL = 0.05

#: Columns of the table.
COLUMNS = (
    "world", "runs", "other_runs", "layers", "units", "faces", "values", "about", "effect",
    "difference", "level", "attainable", "rejection_rate", "rejection_low", "rejection_high",
    "coverage_delta", "coverage_difference", "width_delta", "simulations",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """Where two arms come from. Standard deviations, and the difference, are in those of units.

    Attributes
    ----------
    name : str
    runs, other_runs : int
        Networks (seeds) of the two arms.
    difference : float
        Added to the first arm.
    seed, seed_layer : float
        Standard deviation among networks; among networks at a layer, beyond that.
    arm_layer : float
        Standard deviation over layers of what the arms differ by.
    layers, units, faces : int
        Layers of a network, units of a layer, faces of a unit (alike but for a tenth).
    skewed : bool
        Values are exponentials of normal ones, whose ranks are the same.
    """

    name: str
    runs: int
    other_runs: int
    difference: float = 0.0
    seed: float = 0.3
    seed_layer: float = 0.2
    arm_layer: float = 0.0
    layers: int = 4
    units: int = 40
    faces: int = 1
    skewed: bool = False

    @property
    def delta(self) -> float:
        """Cliff's delta between units of any two networks of the arms, mean over layers."""
        variance = 2 * (1 + self.seed**2 + self.seed_layer**2) + self.arm_layer**2
        return float(2 * scipy.stats.norm.cdf(self.difference / math.sqrt(variance)) - 1)

    @property
    def attainable(self) -> float:
        """The largest share of rejections at the level that the test's p-values allow for."""
        if min(self.runs, self.other_runs) == 1:
            return LEVEL
        step = least_p(self.runs, self.other_runs)
        return math.floor(LEVEL / step + 1e-9) * step

    def draw(self, rng: np.random.Generator) -> Measure:
        """Return one comparison's values."""
        n = self.runs + self.other_runs
        shift = np.zeros((n, self.layers))
        shift[: self.runs] += self.difference + self.arm_layer * rng.normal(size=self.layers)
        shift += self.seed * rng.normal(size=(n, 1)) + rng.normal(size=self.layers)
        shift += self.seed_layer * rng.normal(size=shift.shape)
        values = shift[..., None] + rng.normal(size=(*shift.shape, self.units))
        values = values[..., None] + 0.1 * rng.normal(size=(*values.shape, self.faces)) * (
            self.faces > 1
        )
        if self.skewed:
            values = np.exp(values)
        unit = np.repeat(np.arange(self.units), self.faces)
        cells = [[Cell(one.reshape(-1), unit, self.units) for one in row] for row in values]
        layers = [str(layer) for layer in range(self.layers)]
        medians = np.array([[cell.summary("median") for cell in row] for row in cells])
        return Measure("drawn", "value", "drawn", layers, "median", "", medians, cells)


def _worlds() -> Iterator[World]:
    for runs, others in ((5, 5), (3, 6), (8, 8), (3, 3)):
        yield World("alike", runs, others)
    yield World("alike, skewed values", 5, 5, skewed=True)
    yield World("alike, seeds differ more than units", 5, 5, seed=1.5)
    yield World("alike, two faces a unit", 5, 5, faces=2)
    for difference in (0.3, 0.6, 1.0):
        yield World("arms differ", 5, 5, difference=difference)
    yield World("arms differ", 3, 6, difference=1.0)
    yield World("arms differ", 8, 8, difference=0.6)
    yield World("arms differ", 3, 3, difference=1.0)
    yield World("arms differ, not alike at all layers", 5, 5, difference=0.6, arm_layer=0.5)
    still = World("two networks alike", 1, 1, seed=0.0, seed_layer=0.0)
    yield still
    yield replace(still, name="two networks alike, two faces a unit", faces=2)
    yield replace(still, name="two networks alike, twelve layers", layers=12)
    yield replace(still, name="two networks differ", difference=0.3)
    yield replace(still, name="two networks differ, not alike at all layers", arm_layer=0.5)
    yield World("arms alike, one seed each", 1, 1)


#: The worlds of the bench.
WORLDS = tuple(_worlds())


def simulate(
    worlds: tuple[World, ...] = WORLDS,
    *,
    simulations: int = 1000,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Return how often comparisons reject, and intervals cover, in each world; see `COLUMNS`."""
    rows = []
    for k, world in enumerate(worlds):
        rows.append(_row(world, simulations, np.random.default_rng((seed, k))))
        report(f"{world.name}, {world.runs} and {world.other_runs}: {rows[-1][12]:.3f} rejected")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(world: World, simulations: int, rng: np.random.Generator) -> tuple[object, ...]:
    p, ends, delta_ends = np.empty(simulations), np.empty((simulations, 2)), []
    for k in range(simulations):
        found: dict[str, float] = effect_of(world.draw(rng), world.runs)  # type: ignore[assignment]
        p[k] = found["p"]
        ends[k] = found["difference_low"], found["difference_high"]
        delta_ends.append((found["delta_low"], found["delta_high"]))
    of_delta = np.array(delta_ends)
    rejected = int((p <= LEVEL).sum())
    low, high = scipy.stats.binomtest(rejected, simulations).proportion_ci(method="wilson")
    single = min(world.runs, world.other_runs) == 1
    return (
        world.name, world.runs, world.other_runs, world.layers, world.units, world.faces,
        "skewed" if world.skewed else "normal", "these networks" if single else "training",
        world.delta, world.difference, LEVEL, world.attainable, rejected / simulations,
        float(low), float(high), _covered(of_delta, world.delta),
        float("nan") if world.skewed else _covered(ends, world.difference),
        float(np.median(of_delta[:, 1] - of_delta[:, 0])), simulations,
    )  # fmt: skip


def _covered(ends: Floats, truth: float) -> float:
    return float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())
