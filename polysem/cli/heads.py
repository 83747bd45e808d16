"""``polysem heads``: what each attention head does, and which work with or against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import pandas as pd

    from polysem.store.run import Run


#: Columns of the table of heads that are printed, and what they are called there.
_SHORT = {
    "layer": "layer", "head": "head", "importance_zero": "zero", "importance_zero_low": "low",
    "importance_zero_high": "high", "importance_mean": "mean", "importance_resample": "resample",
    "rival_interaction": "rival", "double_interaction": "double",
}  # fmt: skip


def heads(
    model: Annotated[
        str, typer.Option(help="Checkpoint file, or timm:NAME, hf-hub:ORG/NAME, bcos:NAME, folder.")
    ],
    data: Annotated[
        str, typer.Option(help="Image folder, parquet, archive, hub:ORG/NAME, or shapes.")
    ],
    out: Annotated[Path, typer.Option(help="New run, or one of the same model and data.")],
    target: Annotated[
        Literal["margin", "loss"],
        typer.Option(help="Heads are held to: right logit minus the highest other, or the loss."),
    ] = "margin",
    method: Annotated[
        Literal["gradients", "hessian", "exact"],
        typer.Option(help="How the interaction of all pairs is found."),
    ] = "gradients",
    limit: Annotated[int, typer.Option(help="Images, a random sample of so many.", min=1)] = 256,
    of_class: Annotated[
        str | None, typer.Option("--class", help="Only images of this class, by name or number.")
    ] = None,
    exact_pairs: Annotated[
        int, typer.Option(help="Random pairs that are also computed exactly.", min=0)
    ] = 200,
    shapley: Annotated[
        int, typer.Option(help="Samples of the Shapley interaction of these pairs.", min=0)
    ] = 0,
    draws: Annotated[int, typer.Option(help="Random orders in which heads drop.", min=1)] = 8,
    chance: Annotated[
        bool, typer.Option(help="Also measure random parts of the heads' outputs.")
    ] = True,
    pictures: Annotated[bool, typer.Option(help="Draw pictures into RUN/pictures.")] = True,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows side by side. Default: 32, on a GPU 256.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of all that is drawn at random.", min=0)] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="Weights file for timm:NAME or bcos:NAME.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="timm name of a bare state dict's architecture.")
    ] = None,
) -> None:
    """Measure what every attention head does, and whether heads fight or cover for each other.

    Example: [bold]polysem heads --model ckpt.pt --data photos/ --out runs/a[/bold]

    On all GPUs: [bold]accelerate launch -m polysem heads --model …[/bold]
    """
    import torch

    from polysem.analysis.coadaptation import add_head_tables
    from polysem.launch import launched
    from polysem.models.load import load_model
    from polysem.probe.heads import heads as study

    torch.manual_seed(0)  # timm:NAME without weights draws them: the same in every run
    run = study(
        load_model(model, weights=weights, arch=arch),
        data,
        out=out,
        target=target,
        method=method,
        limit=limit,
        of_class=of_class,
        exact_pairs=exact_pairs,
        shapley=shapley,
        draws=draws,
        chance=chance,
        batch_size=batch_size,
        device=device,
        seed=seed,
    )
    if not launched().first:
        return
    network = add_head_tables(run)
    _print(run, network)
    if model.startswith("timm:") and weights is None and "?" not in model:
        print(f"note: {model} has random weights; timm:NAME?pretrained downloads trained ones")
    if pictures:
        print(f"wrote {draw_heads(run)}")
    print(f"wrote {out}; draw a head: polysem show {out} --head {_busiest(run)}")


def _print(run: Run, network: pd.DataFrame) -> None:
    from polysem.cli.tables import print_table

    gates = run.gates
    print(
        f"{gates.sizes['image']:,} images, {gates.sizes['layer'] * gates.sizes['head']} heads, "
        f"target {gates.attrs['target']}"
    )
    for note in gates.attrs["notes"]:
        print(f"note: {note}")
    table = run.table("heads")
    order = table["importance_zero"].abs().sort_values(ascending=False).index[:8]
    shown = table.loc[order, list(_SHORT)].rename(columns=_SHORT)
    print_table(shown, title=f"Heads whose loss changes the {gates.attrs['target']} most")
    print_table(network[["statistic", "value", "low", "high"]], title="All heads together")
    print(_agreement(network.set_index("statistic"), str(gates.attrs["method"])))


def _agreement(network: pd.DataFrame, method: str) -> str:
    """Say how far the estimate of all pairs can be trusted."""
    text = f"all pairs by {method}"
    rows = network.to_dict("index")
    if row := rows.get("rank_correlation"):
        text += (
            f": rank correlation with exact interactions {row['value']:.3f} "
            f"({row['low']:.3f} to {row['high']:.3f})"
        )
    else:
        text += ": not held against exact interactions (--exact-pairs)"
    disagreement = rows["rank_disagreement"]["value"]
    return f"{text}; 1 − rank correlation of its two directions {disagreement:.3f}"


def _busiest(run: Run) -> str:
    row = max(run.table("heads").to_dict("records"), key=lambda row: abs(row["importance_zero"]))
    return f"{row['layer']}.{row['head']}"


def draw_heads(run: Run) -> Path:
    """Draw what a study of heads says into the run's folder of pictures, and return it."""
    from polysem.report.head_curves import drop_curves
    from polysem.report.head_graph import interaction_graph
    from polysem.report.head_maps import importance_map, interaction_matrix
    from polysem.report.page import save

    folder = run.path / "pictures"
    drawn = {
        "heads_importance": importance_map(run),
        "heads_interactions": interaction_matrix(run),
        "heads_graph": interaction_graph(run),
        "heads_dropped": drop_curves({run.manifest["model"]["name"]: run}),
    }
    for name, figure in drawn.items():
        save(figure, folder / f"{name}.png")
    return folder
