"""Snapshots of one network probed on the same images: read, decoded and embedded once.

The last snapshot comes first: its pooled features, which its own pass computes anyway, embed the
images for all others, so that scores over time are in one space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import torch

from polysem.data.dataset import ImageData
from polysem.errors import PolysemError, SpecError, did_you_mean
from polysem.models.encoder import Encoder
from polysem.models.hooked import HookedVisionModel
from polysem.models.load import LoadedModel, load_model
from polysem.models.snapshots import Snapshot
from polysem.probe.assemble import assemble
from polysem.probe.describe import choose_sites
from polysem.probe.embedder import KeptEmbeddings
from polysem.probe.kept_images import KeptImages
from polysem.probe.probe import encoder_from, record
from polysem.probe.recorder import Precision, Recorder
from polysem.sites import parse_site
from polysem.store.journal import Journal
from polysem.store.run import Run

__all__ = ["probe_snapshots", "require_units"]


def probe_snapshots(
    snapshots: Sequence[Snapshot],
    source: ImageData,
    folders: Sequence[Path],
    *,
    device: torch.device,
    embed: str | Path | Encoder | None = "final",
    arch: str | None = None,
    sites: str | Iterable[str] | None = None,
    top_k: int = 16,
    sample: int = 1024,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    workers: int | None = None,
    strict: bool = False,
    progress: bool = True,
    resume: bool = True,
    begin: Callable[[Path], None] = lambda folder: None,
) -> bool:
    """Make a run of every snapshot, each with the pooled activations of all images.

    Parameters
    ----------
    snapshots : sequence of Snapshot
        Earliest first.
    source : ImageData
        The images.
    folders : sequence of Path
        Where the run of each snapshot goes.
    device : torch.device
        Where the networks run.
    embed : str, Path, Encoder or None
        ``final``: the pooled features of the last snapshot; ``model``: each snapshot's own;
        anything that `load_encoder` takes; None: no embeddings.
    arch : str, optional
        timm's name of the architecture, for files that do not say.
    sites, top_k, sample, batch_size, precision, workers, strict, progress
        As in `probe`.
    resume : bool, default True
        Keep runs that are there already and came about in the same way.
    begin : callable
        Called once, with the folder of the first run that was made.

    Returns
    -------
    bool
        Whether all are done; False if Ctrl-C ended it early. The snapshot at work then is lost.

    Raises
    ------
    PolysemError
        As `probe` does. Runs of snapshots that were done stay.
    """
    cuda = device.type == "cuda"
    encoder: Encoder | KeptEmbeddings | Literal["model"] | None
    encoder = encoder_from("model" if embed == "final" else embed, device)
    last = load_model(snapshots[-1].checkpoint, arch=arch, device=device)
    kept = KeptImages(
        source, last.transform, batch_size or (256 if cuda else 64), folder=folders[-1].parent,
        workers=(8 if cuda else 0) if workers is None else workers, pin=cuda, strict=strict,
    )  # fmt: skip
    begun = False
    with closing(kept) as images:
        for place in (len(snapshots) - 1, *range(len(snapshots) - 1)):
            snapshot, folder = snapshots[place], folders[place]
            is_last = snapshot == snapshots[-1]
            loaded = last if is_last else load_model(snapshot.checkpoint, arch=arch, device=device)
            recorder = Recorder(
                loaded, source, sites=sites, top_k=top_k, pooled=True, patterns=False,
                sample=sample, device=device, precision=precision, embed=encoder,
            )  # fmt: skip
            if not (resume and _made_like(folder, recorder)):
                with Journal(folder, {}, overwrite=True) as recorder.journal:
                    other = recorder.embedder.other_transform if recorder.embedder else None
                    interrupted, seconds = record(
                        recorder, images.batches(other), task=f"step {snapshot.step}",
                        progress=progress,
                    )  # fmt: skip
                    if interrupted:
                        return False
                    recorder.flush()
                    assemble(
                        recorder, recorder.journal, overwrite=True, interrupted=False,
                        seconds=seconds,
                    )  # fmt: skip
                if not begun:
                    begin(folder)
                begun = True
            if is_last and embed == "final":
                encoder = KeptEmbeddings(Run.open(folder), snapshot.checkpoint)
            elif is_last and isinstance(encoder, Encoder):
                encoder = KeptEmbeddings(Run.open(folder), encoder.spec)
    return True


def _made_like(folder: Path, recorder: Recorder) -> bool:
    """Whether a whole run is there already that a recorder would only make again."""
    try:
        run = Run.open(folder)
    except PolysemError:
        return False
    facts, embedder = run.manifest, recorder.embedder
    return (
        facts["status"] == "complete"
        and facts["model"]["sha256"] == recorder.loaded.sha256
        and facts["data"]["fingerprint"] == recorder.source.fingerprint
        and facts["options"] == recorder.options
        and list(facts["sites"]) == list(recorder.sites)
        and (facts["embedding"] or {}).get("fingerprint")
        == (None if embedder is None else embedder.attrs["fingerprint"])
    )


@torch.inference_mode()
def require_units(
    loaded: LoadedModel,
    units: Sequence[tuple[str, int]],
    *,
    sites: str | Iterable[str] | None = None,
) -> None:
    """Refuse, before any work, units that a network lacks or that would not be recorded.

    Raises
    ------
    SpecError
        Naming the first such unit.
    """
    hooked = HookedVisionModel(loaded.model)
    recorded = choose_sites(list(hooked.hook_dict), sites)
    blank = torch.zeros(1, 3, *loaded.transform.size, dtype=torch.uint8)
    _, cache = hooked.run_with_cache(loaded.transform.normalize(blank))
    for name, unit in units:
        if name not in recorded:
            near = did_you_mean(name, recorded) or f"; recorded are {', '.join(recorded)}"
            raise SpecError(f"there is no recorded site {name!r}{near}")
        site = parse_site(name)
        n_units = cache[name].shape[site.dims.index(site.unit_dim)]
        if not 0 <= unit < n_units:
            raise SpecError(f"{name} has no unit {unit}: they are numbered 0 to {n_units - 1}")
