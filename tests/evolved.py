"""A small evolution as a folder, from drawn activations, for the tests of what reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from drawn_run import Activations, PlainSource, write_run

from polysem.analysis.evolution import evolution_tables
from polysem.analysis.polysemanticity import polysemanticity
from polysem.analysis.snapshot_labels import label_source
from polysem.store.evolution import Evolution, write_evolution
from polysem.store.tables import save_table


def write_series(
    out: Path, source: PlainSource, snapshots: Sequence[Mapping[str, Activations]]
) -> Evolution:
    """Write snapshots of steps 0, 1, 10, 100 … as `polysem evolve` does, but for pictures."""
    steps = [0, *(10**i for i in range(len(snapshots) - 1))]
    runs = {}
    for step, shown in zip(steps, snapshots, strict=True):
        runs[step] = write_run(out / f"step_{step}", source, shown, pooled=True, size=(32, 48))
        polysemanticity(runs[step], progress=False)
    labels = label_source(list(runs.values()))
    tables = evolution_tables(runs, labels=labels, progress=False)
    for name in ("trajectories", "births", "layers"):
        save_table(getattr(tables, name), out / "tables", name)
    final = runs[steps[-1]].manifest
    write_evolution(
        out,
        {
            "status": "complete",
            "steps": [{"step": step, "run": f"step_{step}"} for step in steps],
            "model": {"name": final["model"]["name"], "classes": None},
            "data": final["data"],
            "labels": {"source": labels},
            "threshold": 0.7,
        },
    )
    return Evolution.open(out)
