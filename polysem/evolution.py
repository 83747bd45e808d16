"""`evolve`: from the snapshots of a training to how its units came to be, as one folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path

import PIL.Image

from polysem.analysis.evolution import evolution_tables
from polysem.analysis.polysemanticity import polysemanticity, what_is_missing
from polysem.analysis.snapshot_labels import label_source
from polysem.analysis.trajectories import Follow
from polysem.data.dataset import ImageData
from polysem.data.sources import load_data
from polysem.describe.describe import describe_neurons
from polysem.describe.vocabulary import Vocabulary, load_vocabulary
from polysem.device import choose_device
from polysem.errors import DataError, SpecError
from polysem.models.clip import Clip, load_clip
from polysem.models.encoder import Encoder, image_encoder
from polysem.models.load import load_model
from polysem.models.snapshots import find_snapshots
from polysem.models.transform import Transform
from polysem.probe.describe import describe_versions
from polysem.probe.embed import embed_images, is_kept
from polysem.probe.probe import encoder_from
from polysem.probe.recorder import Precision
from polysem.probe.snapshots import probe_snapshots, require_units
from polysem.report.evolution_pictures import draw_evolution
from polysem.report.exemplars import Images
from polysem.report.unit_strip import clear_units
from polysem.store.additions import add_arrays
from polysem.store.evolution import Evolution, check_evolution, clear_evolution, write_evolution
from polysem.store.run import Run
from polysem.store.schema import EMBEDDINGS, dataset
from polysem.store.tables import save_table

__all__ = ["evolve"]


def evolve(
    checkpoints: str | PathLike[str] | Iterable[str | PathLike[str]],
    data: str | Path | ImageData,
    *,
    out: str | Path,
    embed: str | Path | Encoder | None = "final",
    clip: str | Path | Clip | None = None,
    concepts: str | Path | Vocabulary = "common",
    follow: Follow = "index",
    threshold: float = 0.7,
    units: Sequence[tuple[str, int]] = (),
    arch: str | None = None,
    sites: str | Iterable[str] | None = None,
    top_k: int = 16,
    sample: int = 1024,
    batch_size: int | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    limit: int | None = None,
    workers: int | None = None,
    strict: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Evolution:
    """Follow the units of a network through the snapshots of its training.

    Images are read, decoded and embedded once. Each snapshot becomes a run of its own, ``step_N``,
    in which all that works on runs works; tables and pictures tell how units came to be.

    Parameters
    ----------
    checkpoints : str, path-like, or iterable of them
        Globs of snapshots, at least two, as `find_snapshots` takes them.
    data : str, Path or ImageData
        Anything that `load_data` takes.
    out : str or Path
        Folder of the result.
    embed : str, Path, Encoder or None
        What embeds the images, for monosemanticity: ``final``, the pooled features of the last
        snapshot, the same for all; ``model``, each snapshot's own; anything that `load_encoder`
        takes; None leaves these scores out.
    clip : str, Path or Clip, optional
        Name units by this vision-language model, as `describe_neurons` does. Without, a unit is
        called by the class that it tells best, where images have labels.
    concepts : str, Path or Vocabulary
        Names that may be given.
    follow : {"index", "match"}
        Which unit of an earlier snapshot is held to be the same: the one of the same index, or
        the one whose activations are the most alike, one to one.
    threshold : float, default 0.7
        Correlation from which on a unit counts as its final self.
    units : sequence of (str, int)
        Sites and units whose exemplars are drawn over time; by default some of the clearest.
    arch : str, optional
        timm's name of the architecture, for checkpoints that do not say.
    sites, top_k, sample, batch_size, device, precision, limit, workers, strict
        As in `probe`.
    resume : bool, default False
        Go on where an earlier call stopped; snapshots that were probed in the same way are kept.
    overwrite : bool, default False
        Replace an earlier result.
    progress : bool, default True
        Draw progress bars if the terminal can.

    Returns
    -------
    Evolution
        With status ``running`` if Ctrl-C ended the probing early; what was done is kept.

    Raises
    ------
    PolysemError
        Snapshots that are missing, of different networks, or in no clear order; bad data, encoder,
        sites or folder. Nothing is left at `out` then that was not there before, except snapshots
        that were probed to the end.
    """
    place, folder = choose_device(device), Path(out).expanduser()
    if not -1 <= threshold <= 1:
        raise SpecError(f"threshold is a correlation, from -1 to 1, not {threshold}")
    check_evolution(folder, resume=resume, overwrite=overwrite)
    snapshots, ordered_by = find_snapshots(checkpoints, arch=arch)
    if units:
        require_units(load_model(snapshots[-1].checkpoint, arch=arch), units, sites=sites)
    source = data if isinstance(data, ImageData) else load_data(str(data), limit=limit)
    if not len(source):
        raise DataError(f"{source.name} holds no images")
    encoder = embed if embed == "final" else encoder_from(embed, place)
    towers = clip if clip is None or isinstance(clip, Clip) else load_clip(clip, device=device)
    words = concepts if isinstance(concepts, Vocabulary) else load_vocabulary(concepts)
    started = {
        "status": "running",
        "steps": [{**asdict(each), "run": f"step_{each.step}"} for each in snapshots],
        "ordered_by": ordered_by,
        "follow": follow,
        "threshold": threshold,
        "versions": describe_versions(),
    }

    begun: list[Path] = []

    def begin(first: Path) -> None:
        begun.append(first)
        if not resume:
            clear_evolution(folder, but=first)
        write_evolution(folder, started)

    made = not folder.exists()
    try:
        done = probe_snapshots(
            snapshots, source, [folder / f"step_{each.step}" for each in snapshots], device=place,
            embed=encoder, arch=arch, sites=sites, top_k=top_k, sample=sample,
            batch_size=batch_size, precision=precision, workers=workers, strict=strict,
            progress=progress, resume=resume, begin=begin,
        )  # fmt: skip
    finally:
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if not (done or begun or resume):
        raise DataError("interrupted before the first snapshot was probed; nothing was written")
    if not done:
        return Evolution(folder, started)
    runs = {each.step: Run.open(folder / f"step_{each.step}") for each in snapshots}
    if towers is not None:
        _name(runs, source, towers, words, batch_size, progress=progress)
    for run in runs.values():
        if not run.has_table("polysemanticity"):
            polysemanticity(run, progress=progress)
    labels = label_source(list(runs.values()))
    tables = evolution_tables(
        runs, labels=labels, follow=follow, threshold=threshold, progress=progress
    )
    for name in ("trajectories", "births", "layers"):
        save_table(getattr(tables, name), folder / "tables", name)
    final = runs[snapshots[-1].step]
    facts = {
        **started,
        "model": {key: final.manifest["model"][key] for key in ("name", "classes")},
        "data": final.manifest["data"],
        "embedding": final.manifest["embedding"],
        "labels": {
            "source": labels,
            "clip": None if towers is None else towers.spec,
            "vocabulary": None if towers is None else words.name,
        },
        "options": {**final.manifest["options"], "sites": list(final.sites)},
        "notes": [*final.manifest["notes"], *what_is_missing(final), *_left_out(final)],
    }
    evolution = Evolution(folder, facts)
    chosen = list(units) or clear_units(evolution)
    facts["units_shown"] = draw_evolution(evolution, _seen(final, source), chosen)
    facts["status"] = "complete"
    write_evolution(folder, facts)
    return evolution


def _name(
    runs: Mapping[int, Run],
    source: ImageData,
    clip: Clip,
    words: Vocabulary,
    batch_size: int | None,
    *,
    progress: bool,
) -> None:
    """Name the units of all runs; the vision-language model sees the images once."""
    encoder = image_encoder(clip)
    lacking = [run for run in runs.values() if not is_kept(run, encoder, of="clip_embeddings")]
    donor = next((run for run in runs.values() if run not in lacking), None)
    if lacking:
        if donor is not None:
            values = donor.clip_embeddings.to_numpy()
        else:
            values = embed_images(lacking[0], source, encoder, batch_size or 64, progress=progress)
        arrays = dataset(EMBEDDINGS, {"embedding": values}, {})
        arrays["embedding"].attrs |= {"encoder": clip.spec, "fingerprint": encoder.fingerprint}
        for run in lacking:
            add_arrays(run, "clip_embeddings", arrays)
    for run in runs.values():
        describe_neurons(run, clip, concepts=words, seen="images", progress=progress)


def _left_out(run: Run) -> list[str]:
    """Return a sentence on images that could not be read, if there are any."""
    skipped = run.manifest["skipped"]
    if not skipped:
        return []
    first = f"{skipped[0]['key']!r} ({skipped[0]['reason']})"
    return [f"left out {len(skipped):,} images that cannot be read, such as {first}"]


def _seen(run: Run, source: ImageData) -> Images:
    """Return a function from the number of an image to the pixels that the networks saw."""
    transform = Transform.from_dict(run.manifest["model"]["transform"])

    def seen(image: int) -> PIL.Image.Image:
        pixels = transform(source.read(image))
        return PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    return seen
