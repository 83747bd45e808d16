"""``polysem circuits``: which units feed which, and the circuit of a unit, a class or a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from polysem.errors import SpecError

if TYPE_CHECKING:
    from polysem.explain.circuits import Circuit
    from polysem.models.load import LoadedModel


def circuits(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    model: Annotated[
        str, typer.Option(help="The model of the run: a file, timm:NAME, hf-hub:ORG/NAME, …")
    ],
    unit: Annotated[
        str | None, typer.Option(help="A unit, site:unit; site:unit:lower for one face of it.")
    ] = None,
    of_class: Annotated[
        str | None, typer.Option("--class", help="A class, by name or number.")
    ] = None,
    cluster: Annotated[
        int | None, typer.Option(help="A group of units that polysem clusters found.", min=0)
    ] = None,
    facet: Annotated[
        int | None, typer.Option(help="With --unit: only this facet of it.", min=0)
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(
            help="Globs of the model's sites that are traced, comma-separated. Default: neurons "
            "and channels of the run."
        ),
    ] = None,
    exemplars: Annotated[
        int | None, typer.Option(help="Of each face. Default: 16, of all units 8.", min=1)
    ] = None,
    nodes: Annotated[
        int, typer.Option(help="Of one circuit: faces that are kept of each site.", min=1)
    ] = 6,
    keep: Annotated[
        int | None, typer.Option(help="Edges kept into a face. Default: 3, of all units 8.", min=1)
    ] = None,
    check: Annotated[
        int, typer.Option(help="Of all units: so many of the strongest edges are ablated.", min=0)
    ] = 200,
    norms: Annotated[
        Literal["free", "held"] | None,
        typer.Option(
            help="Of networks that are not B-cos: free norms say best what ablating an edge does "
            "(default for all units), held ones make parts sum to the firing (for one circuit)."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Where the images are, if moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    weights: Annotated[
        Path | None, typer.Option(help="Weights file for timm:NAME or bcos:NAME.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="timm name of a bare state dict's architecture.")
    ] = None,
) -> None:
    """Find which units feed which: exactly for B-cos networks, by attribution for others.

    Alone, the strongest edges into every unit and class: RUN/tables/edges.parquet, with
    edge_totals, edge_check (the strongest edges, ablated) and, after polysem clusters, which
    clusters feed which. With --unit, --class or --cluster, that circuit: a picture, JSON and
    GraphML in RUN/circuits.

    Example: [bold]polysem circuits runs/a --model ckpt.pt[/bold]

    One circuit: [bold]polysem circuits runs/a --model ckpt.pt --class cat[/bold]
    """
    import torch

    from polysem.explain.pictures import open_model

    one = not (unit is None and of_class is None and cluster is None)
    if facet is not None and unit is None:
        raise SpecError("--facet belongs to --unit")
    torch.manual_seed(0)  # timm:NAME without weights draws them: the same in every run
    loaded = open_model(model, device, weights=weights, arch=arch)
    if not one:
        _edges(run, loaded, sites, data, exemplars or 8, keep or 8, check, norms or "free", device)
        return
    from polysem.explain.circuits import circuits as trace

    found = trace(
        run, loaded, unit=unit, of_class=of_class, cluster=cluster, facet=facet, sites=sites,
        data=data, exemplars=exemplars or 16, nodes=nodes, keep=keep or 3,
        norms=norms or "held", device=device,
    )  # fmt: skip
    for circuit in found:
        _write(run, circuit)


def _write(run: Path, circuit: Circuit) -> None:
    from polysem.analysis.circuit_graph import circuit_graph, save_graph
    from polysem.report.circuit_graph import circuit_figure
    from polysem.report.page import save
    from polysem.store.run import Run

    graph = circuit_graph(Run.open(run), circuit.title, circuit.facts, circuit.nodes, circuit.edges)
    stem = run / "circuits" / circuit.name
    save_graph(graph, stem)
    picture = save(circuit_figure(graph), stem.with_name(f"{stem.name}.png"))
    facts = circuit.facts
    print(
        f"{circuit.title}: {len(circuit.edges)} edges between {len(circuit.nodes)} nodes; those "
        f"into it explain {facts['kept']:.1%} of its firing, other units {facts['others']:.1%}, "
        f"around them {facts['image']:.1%}, rest {facts['rest']:.1%}"
    )
    print(f"wrote {picture}, .json and .graphml")


def _edges(
    run: Path,
    loaded: LoadedModel,
    sites: str | None,
    data: str | None,
    exemplars: int,
    keep: int,
    check: int,
    norms: Literal["free", "held"],
    device: str,
) -> None:
    from polysem.analysis.circuit_graph import cluster_graph, save_graph
    from polysem.cli.tables import print_table
    from polysem.explain.edges import edges
    from polysem.report.circuit_graph import cluster_figure
    from polysem.report.page import save
    from polysem.store.run import Run

    table = edges(
        run, loaded, sites=sites, data=data, exemplars=exemplars, keep=keep, check=check,
        norms=norms, device=device,
    )  # fmt: skip
    opened = Run.open(run)
    totals = opened.table("edge_totals")
    firing = totals["value"].where(totals["value"] > 0)
    parts = totals[["units", "image", "rest", "kept"]].div(firing, axis=0)
    shares = parts.assign(site=totals["site"]).groupby("site", sort=False).median().reset_index()
    print_table(shares, title="What makes units fire: median shares")
    print_table(opened.table("edge_check"), title="Contributions against ablation")
    for name in ("cluster", "facet_cluster"):
        if opened.has_table(f"{name}_edges"):
            graph = cluster_graph(opened, name)
            stem = opened.path / "circuits" / f"{name}s"
            save_graph(graph, stem)
            print(f"wrote {save(cluster_figure(graph), stem.with_name(f'{name}s.png'))}")
    print(f"{len(table):,} edges are in {run / 'tables' / 'edges.parquet'}")
