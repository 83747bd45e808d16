"""`probe`: one pass over the images, and a run that tells what every unit did."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from polysem.data.dataset import ImageData
from polysem.data.sources import load_data
from polysem.device import own_device
from polysem.errors import DataError, SpecError
from polysem.interrupt import interrupt_flag
from polysem.launch import launched
from polysem.models.encoder import Encoder, load_encoder
from polysem.models.load import LoadedModel, load_model
from polysem.probe.assemble import assemble
from polysem.probe.batches import Decoded, batches, reading_errors
from polysem.probe.exemplars import MOST_IMAGES
from polysem.probe.recorder import Precision, Recorder
from polysem.progress import progress_bar
from polysem.store.journal import Journal
from polysem.store.run import Run

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
    commit_every: float = 60.0,
    progress: bool = True,
) -> Run:
    """Record what every neuron and attention head of a model does on a set of images.

    One pass over the data. What is kept of each unit does not grow with the number of images:
    moments, quantiles, sums by class, and the images that excite it most with activation maps.

    A probe that was ended at any moment goes on when the same call is made again, and gives the
    same result. Processes that were started together (``torchrun``, ``accelerate launch``, see
    `polysem.launch`) share the images between them, and each returns the one run; their number
    changes sums by rounding and nothing else.

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
        Replace a run that is at `out` already, and forget an unfinished one of other settings.
    commit_every : float, default 60
        Seconds after which what is done is made to outlast this process; 0 for every batch.
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
        image; a full disk. Nothing is left at `out` then, and what was committed is kept.
    """
    for name, value in {"top_k": top_k, "sample": sample, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise SpecError(f"{name} must be at least 1, not {value}")
    if bootstrap is not None and (bootstrap < 0 or bootstrap == 1):
        raise SpecError(f"bootstrap must be 0, or at least 2 replicates, not {bootstrap}")
    launch = launched()
    place = own_device(device)
    loaded = model if isinstance(model, LoadedModel) else load_model(str(model))
    source = data if isinstance(data, ImageData) else load_data(str(data), limit=limit)
    if not len(source):
        raise DataError(f"{source.name} holds no images")
    if len(source) > MOST_IMAGES:
        raise DataError(
            f"{source.name} holds {len(source):,} images, and a probe takes at most "
            f"{MOST_IMAGES:,}; give a --limit"
        )
    recorder = Recorder(
        loaded, source, sites=sites, top_k=top_k, pooled=pooled, patterns=patterns,
        sample=sample, device=place, precision=precision, embed=encoder_from(embed, place),
        bootstrap=(20 if embed else 0) if bootstrap is None else bootstrap,
        smoothing=smoothing,
    )  # fmt: skip
    cuda = place.type == "cuda"
    size = batch_size or (256 if cuda else 64)
    config = recorder.config(size) | (
        {"fingerprint": source.fingerprint} if launch.first else {}  # once is enough
    )
    with Journal(out, config, launch, overwrite=overwrite) as journal:
        reading = _Reading(
            size=size,
            workers=(8 if cuda else 0) if workers is None else workers,
            pin=cuda,
            strict=strict,
        )
        interrupted, seconds = _record(recorder, journal, reading, commit_every, progress)
        if not launch.first:
            journal.wait_for_the_run()
            return Run.open(out)
        for saved in journal.others():
            recorder.merge(saved)
            seconds = max(seconds, saved.facts["seconds"])
        assemble(recorder, journal, overwrite=overwrite, interrupted=interrupted, seconds=seconds)
        journal.remove()
    return Run.open(out)


@dataclass(frozen=True)
class _Reading:
    """How images are read."""

    size: int
    workers: int
    pin: bool
    strict: bool


def _record(
    recorder: Recorder,
    journal: Journal,
    reading: _Reading,
    commit_every: float,
    progress: bool,
) -> tuple[bool, float]:
    """Record this process's share of the images, or what is left of it.

    Returns
    -------
    bool, float
        Whether Ctrl-C ended it early, and the seconds that it took, earlier sessions included.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C ended one of several processes; what it has done is kept.
    """
    launch, source, size = journal.launch, recorder.source, reading.size
    share = launch.share(-(-len(source) // size))  # whole batches: the same for any processes
    recorder.journal = journal
    before = 0.0
    if (saved := journal.restore()) is not None:
        recorder.restore(saved)
        before = saved.facts["seconds"]
    span = range((share.start + recorder.n_batches) * size, min(share.stop * size, len(source)))
    task = "probe" if launch.count == 1 else f"probe, process 1 of {launch.count}"
    total = min(share.stop * size, len(source)) - share.start * size
    other = recorder.embedder.other_transform if recorder.embedder else None
    pace = _Pace(commit_every)

    def commit_in_time(seconds: float) -> None:
        if pace.due():
            with pace.committing():
                recorder.commit(seconds=before + seconds)

    decoded = batches(
        source, recorder.loaded.transform, size, other=other, workers=reading.workers,
        pin=reading.pin, strict=reading.strict, span=span,
    )  # fmt: skip
    interrupted, seconds = record(
        recorder, decoded, task=task, progress=progress and launch.first, total=total,
        after=commit_in_time,
    )  # fmt: skip
    seconds += before
    if launch.count == 1:
        recorder.flush()
        return interrupted, seconds
    recorder.commit(seconds=seconds, done=not interrupted)
    if interrupted:
        raise KeyboardInterrupt
    return False, seconds


class _Pace:
    """When it is time to commit: every so many seconds, and never for more than 5 % of the time."""

    def __init__(self, every: float) -> None:
        self.every, self._next = every, time.monotonic() + every

    def due(self) -> bool:
        return time.monotonic() >= self._next

    @contextmanager
    def committing(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        ended = time.monotonic()
        # at 0 every batch: the tests' way to be killed anywhere
        self._next = ended + (max(self.every, 20 * (ended - started)) if self.every else 0)


def record(
    recorder: Recorder,
    decoded: Iterable[Decoded],
    *,
    task: str,
    progress: bool,
    total: int | None = None,
    after: Callable[[float], None] = lambda seconds: None,
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
    total : int, optional
        Images there are; all of the data where not given.
    after : callable
        Called after each batch with the seconds so far.
    """
    total = len(recorder.source) if total is None else total
    started = time.perf_counter()
    with (
        interrupt_flag() as interrupted,
        reading_errors(recorder.source.name),
        recorder.recording(),
        progress_bar(show=progress) as move,
    ):
        for batch in decoded:
            recorder.update(batch)
            move(task, recorder.n_images + len(recorder.skipped), total)
            if interrupted():
                break
            after(time.perf_counter() - started)
    return interrupted(), time.perf_counter() - started


def encoder_from(
    embed: str | Path | Encoder | None, device: torch.device
) -> Encoder | Literal["model"] | None:
    """Return the encoder that is asked for; ``model`` stands for the probed model's own."""
    if embed is None or isinstance(embed, Encoder):
        return embed
    return "model" if str(embed) == "model" else load_encoder(embed, device=device)
