"""`embed`: the images of finished runs through one encoder, in a pass of their own.

Embeddings depend on images and encoder alone. A run that has them keeps them, and runs on the
same images share one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from polysem.data.again import load_again
from polysem.data.dataset import ImageData
from polysem.data.subset import Subset
from polysem.errors import CheckpointError, RunError
from polysem.launch import Launch
from polysem.models.encoder import Encoder, encoder_of, load_encoder
from polysem.models.load import load_model
from polysem.probe.batches import batches
from polysem.probe.embedder import require_directions
from polysem.processes import Processes, processes
from polysem.progress import progress_bar
from polysem.store.additions import add_arrays
from polysem.store.run import Run
from polysem.store.schema import EMBEDDINGS, dataset

__all__ = ["Outcome", "embed", "embed_images", "encoder_for", "is_kept"]

#: How a run came by its embeddings.
Outcome: TypeAlias = Literal["embedded", "copied", "kept"]


def embed(
    runs: Run | Sequence[Run],
    encoder: str | Path | Encoder = "model",
    *,
    data: str | ImageData | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: bool = True,
) -> dict[Path, Outcome]:
    """Give runs the embeddings of their images by one encoder, ``RUN/embeddings.zarr``.

    Parameters
    ----------
    runs : Run or sequence of Run
        Those on the same images share one pass.
    encoder : str, Path or Encoder, default "model"
        ``model``: each run's own model by its pooled features; or anything that `load_encoder`
        takes.
    data : str or ImageData, optional
        Where the images are, if they have moved.
    batch_size : int, optional
        Images per forward pass; 64 on a CPU, 256 on a GPU.
    device : str, default "auto"
        ``auto`` takes a GPU if there is one.
    overwrite : bool, default False
        Embed again where a run has embeddings by this encoder already.
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Returns
    -------
    dict
        For each run's path, whether its images were embedded, the embeddings copied from another
        run on the same images, or kept as they were.

    Raises
    ------
    PolysemError
        An encoder that cannot be loaded, images that are gone or others, a full disk. Older
        embeddings stay as they were then.
    """
    with processes(device) as group:
        return _embed(
            [runs] if isinstance(runs, Run) else list(runs), encoder, group, data=data,
            size=batch_size or (256 if group.device.type == "cuda" else 64),
            overwrite=overwrite, progress=progress,
        )  # fmt: skip


def _embed(
    runs: list[Run],
    encoder: str | Path | Encoder,
    group: Processes,
    *,
    data: str | ImageData | None,
    size: int,
    overwrite: bool,
    progress: bool,
) -> dict[Path, Outcome]:
    place = group.device
    if encoder == "model":
        encoders = {run.path: encoder_for(run, "model", device=place) for run in runs}
    else:
        encoders = dict.fromkeys(
            (run.path for run in runs), encoder_for(runs[0], encoder, device=place)
        )
    outcomes: dict[Path, Outcome] = {
        run.path: "kept"
        for run in runs
        if not overwrite and is_kept(run, encoders[run.path], of="embeddings")
    }
    group.wait()  # all have seen the same runs before the first is written
    for run in runs:
        if run.path in outcomes:
            continue
        used = encoders[run.path]
        donor = next((d for d in runs if d.path in outcomes and _same(d, run, used)), None)
        if donor is not None:
            values = donor.embeddings.to_numpy()
        else:
            source = data if isinstance(data, ImageData) else load_again(run.manifest["data"], data)
            values = embed_images(run, source, used, size, progress=progress, group=group)
        attrs = {"encoder": used.spec, "fingerprint": used.fingerprint}
        arrays = dataset(EMBEDDINGS, {"embedding": values}, {})
        arrays["embedding"].attrs |= attrs
        if group.first:
            add_arrays(run, "embeddings", arrays)
        group.wait()
        outcomes[run.path] = "embedded" if donor is None else "copied"
    return outcomes


def encoder_for(run: Run, encoder: str | Path | Encoder, *, device: torch.device) -> Encoder:
    """Return an encoder; ``model`` is the model that a run was probed with, loaded again.

    Raises
    ------
    PolysemError
        If it cannot be loaded.
    CheckpointError
        If the run's model is no longer the same.
    """
    if isinstance(encoder, Encoder):
        return encoder
    if str(encoder) != "model":
        return load_encoder(encoder, device=device)
    described = run.manifest["model"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # as the command does, whose random weights come back so
        loaded = load_model(described["spec"], device=device)
    if loaded.sha256 != described["sha256"]:
        raise CheckpointError(
            f"{described['spec']} no longer holds the weights that {run.path} was probed with; "
            "name them with --encoder, such as timm:NAME:FILE"
        )
    return encoder_of(loaded)


def is_kept(run: Run, encoder: Encoder, *, of: Literal["embeddings", "clip_embeddings"]) -> bool:
    """Return whether a run holds all its images as an encoder sees them."""
    try:
        found = run.embeddings if of == "embeddings" else run.clip_embeddings
    except RunError:
        return False
    known = found.attrs.get("fingerprint") == encoder.fingerprint
    return known and len(found) == len(run.images)


def _same(donor: Run, run: Run, encoder: Encoder) -> bool:
    """Whether one run's embeddings are those of another."""
    return (
        donor.manifest["data"]["fingerprint"] == run.manifest["data"]["fingerprint"]
        and donor.images["image"].equals(run.images["image"])
        and is_kept(donor, encoder, of="embeddings")
    )


def embed_images(
    run: Run,
    source: ImageData,
    encoder: Encoder,
    batch_size: int,
    *,
    progress: bool,
    group: Processes | None = None,
) -> np.ndarray:
    """Return the embedding of every image of a run [image, dim], in their order.

    Parameters
    ----------
    run : Run
    source : ImageData
        The data that it was probed on.
    encoder : Encoder
    batch_size : int
    progress : bool
        Draw a progress bar if the terminal can.
    group : Processes, optional
        Those that share the images; each returns all embeddings.

    Raises
    ------
    PolysemError
        If an image can no longer be read, or an embedding is not finite.
    """
    device = next(encoder.module.parameters()).device
    kept = Subset(source, run.images["image"].to_numpy())
    launch = Launch() if group is None else Launch(group.number, group.count)
    share = launch.share(-(-len(kept) // batch_size))  # whole batches
    span = range(share.start * batch_size, min(share.stop * batch_size, len(kept)))
    parts: list[Tensor] = []
    with progress_bar(show=progress and launch.first) as move:
        for decoded in batches(kept, encoder.transform, batch_size, strict=True, span=span):
            assert decoded.pixels is not None
            values = encoder(decoded.pixels.to(device)).cpu()
            require_directions(
                values.numpy(), [kept.keys[i] for i in decoded.indices], encoder.spec
            )
            parts.append(values)
            move("embed", decoded.indices[-1] + 1 - span.start, len(span))
    mine = torch.cat(parts) if parts else torch.empty(0)
    whole = [mine] if group is None else group.collect(mine)
    return torch.cat([rows for rows in whole if len(rows)]).numpy()
