"""``polysem bench lipschitz``: how steep a LipsFormer network can get, and how steep it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench_lipschitz(
    model: Annotated[str, typer.Option(help="Checkpoint of a ViT of LipsFormer's parts.")],
    out: Annotated[Path, typer.Option(help="Folder for table.csv.")],
    images: Annotated[int, typer.Option(help="Pictures of noise to measure at.", min=1)] = 4,
) -> None:
    """Lipschitz bounds of a network and its parts beside the slopes measured at pictures of noise.

    The model has attention.kind cosine and center_norm; bounds hold for every input.

    Example: [bold]polysem bench lipschitz --model runs/lips/model.safetensors --out runs/b[/bold]
    """
    import pandas as pd
    import torch

    from polysem.cli.tables import write_table
    from polysem.models.lipschitz import steepness
    from polysem.models.load import load_model

    loaded = load_model(model)
    generator = torch.Generator().manual_seed(0)
    shape = (images, 3, *loaded.transform.size)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    found = steepness(loaded.model.double(), loaded.transform.normalize(pixels).double())
    write_table(pd.DataFrame([vars(part) for part in found]), out)
    print("bound: the most that the output can change by, per change of the input, anywhere")
    print("measured: the largest slope at the pictures, in Euclidean norms")
