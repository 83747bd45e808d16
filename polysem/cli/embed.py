"""``polysem embed``: the images of finished runs through an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def embed(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs; those on the same images share a pass.")
    ],
    encoder: Annotated[
        str,
        typer.Option(
            help="model (each run's own pooled features), timm:NAME[?pretrained or :FILE], "
            "open_clip:ARCH[:PRETRAINED or :FILE], or a checkpoint."
        ),
    ] = "model",
    crops: Annotated[
        str | None,
        typer.Option(help="Also embed crops where the exemplars of these sites fired: globs."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Where the images are, if they have moved.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per pass. Default: 64, on a GPU 256.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Embed again what is embedded already.")
    ] = False,
) -> None:
    """Embed the images of runs, so that scores can tell how alike two images are.

    Example: [bold]polysem embed runs/a runs/b --encoder open_clip:ViT-B-32:clip.pt[/bold]

    On all GPUs: [bold]accelerate launch -m polysem embed runs/a --encoder …[/bold]
    """
    from polysem.launch import launched
    from polysem.probe.crops import embed_crops
    from polysem.probe.embed import embed as embed_runs
    from polysem.store.run import Run

    opened = [Run.open(path) for path in runs]
    outcomes = embed_runs(
        opened, encoder, data=data, batch_size=batch_size, device=device, overwrite=overwrite
    )
    if not launched().first:
        return
    for run in opened:
        n_images, dim = run.embeddings.shape
        print(f"{run.path}: {outcomes[run.path]}, {n_images:,} images in {dim:,} dimensions")
        if crops is not None:
            place = embed_crops(
                run, encoder, sites=crops, data=data, batch_size=batch_size, device=device
            )
            print(f"wrote {place}")
