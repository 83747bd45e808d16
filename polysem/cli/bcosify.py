"""``polysem bcosify``: from a trained standard model to one that fine-tuning turns into B-cos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bcosify(
    model: Annotated[
        str, typer.Option(help="Standard ViT or ResNet: checkpoint file, timm:NAME, hf-hub:NAME.")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint to write, .safetensors.")],
    weights: Annotated[Path | None, typer.Option(help="Weights file for timm:NAME.")] = None,
    arch: Annotated[
        str | None, typer.Option(help="timm name of a bare state dict's architecture.")
    ] = None,
    b: Annotated[float, typer.Option(help="The exponent B after the conversion.", min=1)] = 2,
    share: Annotated[
        float,
        typer.Option(
            help="Of the conversion to do now: 0 keeps the function, 1 is B-cos at once.",
            min=0,
            max=1,
        ),
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file that is there.")
    ] = False,
) -> None:
    """Give a trained standard model B-cos layers, ready to be fine-tuned; same function at first.

    Example: [bold]polysem bcosify --model timm:resnet50?pretrained --out start.safetensors[/bold]
    """
    import torch

    from polysem.models.bcosify_checkpoint import bcosify_checkpoint

    torch.manual_seed(0)  # timm:NAME without weights draws them: the same in every run
    made = bcosify_checkpoint(
        model, out, weights=weights, arch=arch, b=b, share=share, overwrite=overwrite
    )
    print(
        f"{made.base}, {made.parameters:,} parameters: on images of noise its logits differ by at "
        f"most {made.difference:.2g} from the standard model's, the largest of which is "
        f"{made.largest:.3g}"
    )
    if model.startswith("timm:") and weights is None and "?" not in model:
        print(f"note: {model} has random weights; timm:NAME?pretrained downloads trained ones")
    if share:
        print(
            f"note: with share {share:g} of the conversion done it needs fine-tuning to be of use"
        )
    print(f"wrote {out}; fine-tune it with a recipe that says model: {{weights: {out}}}")
