"""``polysem probe``: from a checkpoint and images to a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def probe(
    model: Annotated[
        str, typer.Option(help="Checkpoint file, or timm:NAME, hf-hub:ORG/NAME, bcos:NAME, folder.")
    ],
    data: Annotated[
        str, typer.Option(help="Image folder, parquet, archive, hub:ORG/NAME, or shapes.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    sites: Annotated[
        str | None,
        typer.Option(help="Globs of sites, comma-separated. Default: neurons, heads, pooled."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Exemplars per unit and tail.", min=1)] = 16,
    pooled: Annotated[
        bool, typer.Option("--pooled", help="Keep every unit's activation on every image.")
    ] = False,
    patterns: Annotated[
        bool, typer.Option("--patterns", help="Measure how widely and far heads look.")
    ] = False,
    sample: Annotated[int, typer.Option(help="Images that quantiles are read from.", min=1)] = 1024,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per pass. Default: 64, on a GPU 256.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Arithmetic of the forward pass.")
    ] = "fp32",
    embed: Annotated[
        str | None,
        typer.Option(
            help="Embed the images and score monosemanticity: model, timm:NAME, "
            "open_clip:ARCH[:PRETRAINED or FILE]."
        ),
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option(help="Replicates for intervals. Default: 20 with --embed.", min=0)
    ] = None,
    smoothing: Annotated[
        bool, typer.Option("--smoothing", help="Measure how alike tokens grow, block by block.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="Probe a random sample of so many images.", min=1)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read images.", min=0)] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights file for timm:NAME or bcos:NAME.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="timm name of a bare state dict's architecture.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at an image that cannot be read.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that is there.")
    ] = False,
    commit_every: Annotated[
        float, typer.Option(help="Seconds of work that a killed probe may lose.", min=0)
    ] = 60.0,
) -> None:
    """Record what every neuron and attention head of a model does on a set of images.

    A probe that was killed goes on when the same command is given again.

    Example: [bold]polysem probe --model ckpt.pt --data photos/ --out runs/a[/bold]

    On all GPUs: [bold]accelerate launch -m polysem probe --model …[/bold]
    """
    import torch

    from polysem.launch import launched
    from polysem.models.load import load_model
    from polysem.probe.probe import probe as run_probe

    torch.manual_seed(0)  # timm:NAME without weights draws them: the same in every run
    run = run_probe(
        load_model(model, weights=weights, arch=arch),
        data,
        out=out,
        sites=sites,
        top_k=top_k,
        pooled=pooled,
        patterns=patterns,
        sample=sample,
        batch_size=batch_size,
        device=device,
        precision=precision,
        embed=embed,
        bootstrap=bootstrap,
        smoothing=smoothing,
        limit=limit,
        workers=workers,
        strict=strict,
        overwrite=overwrite,
        commit_every=commit_every,
    )
    if not launched().first:
        return
    facts = run.manifest
    n_units = sum(site["n_units"] for site in facts["sites"].values())
    print(
        f"{facts['n_images']:,} images in {facts['seconds']:.1f} s "
        f"({facts['n_images'] / facts['seconds']:,.0f} images/s), "
        f"{n_units:,} units at {len(facts['sites'])} sites"
    )
    if model.startswith("timm:") and weights is None and "?" not in model:
        print(f"note: {model} has random weights; timm:NAME?pretrained downloads trained ones")
    for note in facts["notes"]:
        print(f"note: {note}")
    if facts["skipped"]:
        first = facts["skipped"][0]
        print(
            f"left out {len(facts['skipped'])} images that cannot be read, such as "
            f"{first['key']!r} ({first['reason']}); all are in {out / 'manifest.json'}"
        )
    print(f"wrote {out}; look at it with: polysem show {out}")
    if facts["status"] == "interrupted":
        print(f"interrupted after {facts['n_images']:,} images; these are kept in {out}")
        raise typer.Exit(130)
