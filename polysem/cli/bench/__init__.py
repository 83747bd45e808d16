"""``polysem bench``: what things cost and how well they do; every bench writes DIR/table.csv."""

from __future__ import annotations

import typer

from polysem.cli.bench.compare import bench_compare
from polysem.cli.bench.describe import bench_describe
from polysem.cli.bench.explain import bench_explain
from polysem.cli.bench.faults import bench_faults
from polysem.cli.bench.heads import bench_heads
from polysem.cli.bench.lipschitz import bench_lipschitz
from polysem.cli.bench.monosemanticity import bench_monosemanticity
from polysem.cli.bench.polysemanticity import bench_polysemanticity
from polysem.cli.bench.probe import bench_probe
from polysem.cli.bench.report import bench_report
from polysem.cli.bench.scaling import bench_scaling
from polysem.cli.bench.soak import bench_soak
from polysem.cli.bench.train import bench_train

__all__ = ["bench"]

bench = typer.Typer(
    help="Measure polysem on this machine; each bench prints a table and writes DIR/table.csv.",
    no_args_is_help=True,
)
bench.command("describe")(bench_describe)
bench.command("compare")(bench_compare)
bench.command("explain")(bench_explain)
bench.command("faults")(bench_faults)
bench.command("heads")(bench_heads)
bench.command("lipschitz")(bench_lipschitz)
bench.command("monosemanticity")(bench_monosemanticity)
bench.command("polysemanticity")(bench_polysemanticity)
bench.command("probe")(bench_probe)
bench.command("scaling")(bench_scaling)
bench.command("soak")(bench_soak)
bench.command("report")(bench_report)
bench.command("train")(bench_train)
