"""`probe`: one pass over the images, and a run that tells what every unit did."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch

from polysem.data.dataset import ImageData
from polysem.data.sources import load_data
from polysem.device import choose_device
from polysem.errors import DataError, SpecError
from polysem.interrupt import interrupt_flag
from polysem.models.encoder import Encoder, load_encoder
from polysem.models.load import LoadedModel, load_model
from polysem.probe.batches import Decoded, batches
from polysem.probe.recorder import Precision, Recorder
from polysem.progress import progress_bar
from polysem.store.run import Run
from polysem.store.writer import RunWriter

__all__ = ["encoder_from", "probe", "record"]


def probe(
    model: str | Path | LoadedModel,
    data: str | Path | ImageData,
    *,
    out: str | Path,
    sites: str | Iterable[str] | None = None,
    top_k: int = 16,
    pooled: bool = False,
    patterns: bool = False,
    sample: int = 1024,
    batch_size: int | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    embed: str | Path | Encoder | None = None,
    bootstrap: int | None = None,
    smoothing: bool = False,
    limit: int | None = None,
    workers: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Record what every neuron and attention head of a model does on a set of images.

    One pass over the data. What is kept of each unit does not grow with the number of images:
    moments, quantiles, sums by class, and the images that excite it most with activation maps.

    Parameters
    ----------
    model : str, Path or LoadedModel
        Anything that `load_model` takes.
    data : str, Path or ImageData
        Anything that `load_data` takes.
    out : str or Path
        Folder of the run; appears when it is whole.
    sites : str or iterable of str, optional
        Globs over site names; by default all MLP neurons, heads, pooled features and the
        channels of CNN blocks.
    top_k : int, default 16
        Exemplars per unit, of both tails where units fire in both directions.
    pooled : bool, default False
        Also keep the pooled activation of every unit on every image (grows with the data).
    patterns : bool, default False
        Also measure entropy and mean distance of every head's attention pattern.
    sample : int, default 1024
        Images in the random sample that quantiles are read from.
    batch_size : int, optional
        Images per forward pass; 64 on a CPU, 256 on a GPU.
    device : str, default "auto"
        ``auto`` takes a GPU if there is one.
    precision : {"fp32", "bf16"}, default "fp32"
        Arithmetic of the forward pass; statistics are float32 and float64 in either case.
    embed : str, Path or Encoder, optional
        Also embed every image and score how alike the images are that excite a unit: ``model``
        takes the model's own pooled features, at no extra cost; anything that `load_encoder`
        takes is another network that sees the same images in the same pass.
    bootstrap : int, optional
        Replicates of a bootstrap over images, for intervals of monosemanticity, class selectivity
        and means; by default 20 with `embed`, else none. Each keeps 4 bytes for each entry of
        [tail, unit, dimension of the embedding].
    smoothing : bool, default False
        Also measure how alike the tokens of an image are after each block of a transformer.
    limit : int, optional
        Probe only so many images.
    workers : int, optional
        Processes that read images; by default none on a CPU, up to 8 beside a GPU.
    strict : bool, default False
        Stop at an image that cannot be read, instead of leaving it out and noting it.
    overwrite : bool, default False
        Replace a run that is at `out` already.
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Returns
    -------
    Run
        The run, with status ``interrupted`` if Ctrl-C ended it early; what was done is kept.

    Raises
    ------
    PolysemError
        Bad model, data, site or output folder; activations that are not finite; no readable
        image. Nothing is left at `out` then.
    """
    for name, value in {"top_k": top_k, "sample": sample, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise SpecError(f"{name} must be at least 1, not {value}")
    if bootstrap is not None and (bootstrap < 0 or bootstrap == 1):
        raise SpecError(f"bootstrap must be 0, or at least 2 replicates, not {bootstrap}")
    place = choose_device(device)
    with RunWriter(out, overwrite=overwrite) as writer:
        loaded = model if isinstance(model, LoadedModel) else load_model(str(model))
        source = data if isinstance(data, ImageData) else load_data(str(data), limit=limit)
        if not len(source):
            raise DataError(f"{source.name} holds no images")
        recorder = Recorder(
            loaded, source, writer, sites=sites, top_k=top_k, pooled=pooled, patterns=patterns,
            sample=sample, device=place, precision=precision, embed=encoder_from(embed, place),
            bootstrap=(20 if embed else 0) if bootstrap is None else bootstrap,
            smoothing=smoothing,
        )  # fmt: skip
        cuda = place.type == "cuda"
        size = batch_size or (256 if cuda else 64)
        workers = (8 if cuda else 0) if workers is None else workers
        other = recorder.embedder.other_transform if recorder.embedder else None
        decoded = batches(
            source, loaded.transform, size, other=other, workers=workers, pin=cuda, strict=strict
        )
        interrupted, seconds = record(recorder, decoded, task="probe", progress=progress)
        recorder.finish(interrupted=interrupted, seconds=seconds)
    return Run.open(out)


def record(
    recorder: Recorder, decoded: Iterable[Decoded], *, task: str, progress: bool
) -> tuple[bool, float]:
    """Show a recorder all batches, and return whether Ctrl-C ended it early, and the seconds.

    Parameters
    ----------
    recorder : Recorder
    decoded : iterable of Decoded
    task : str
        What the progress bar calls it.
    progress : bool
        Draw a progress bar if the terminal can.
    """
    started = time.perf_counter()
    with (
        interrupt_flag() as interrupted,
        recorder.recording(),
        progress_bar(show=progress) as move,
    ):
        for batch in decoded:
            recorder.update(batch)
            move(task, recorder.n_images + len(recorder.skipped), len(recorder.source))
            if interrupted():
                break
    return interrupted(), time.perf_counter() - started


def encoder_from(
    embed: str | Path | Encoder | None, device: torch.device
) -> Encoder | Literal["model"] | None:
    """Return the encoder that is asked for; ``model`` stands for the probed model's own."""
    if embed is None or isinstance(embed, Encoder):
        return embed
    return "model" if str(embed) == "model" else load_encoder(embed, device=device)
