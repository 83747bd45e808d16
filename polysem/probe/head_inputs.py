"""Which images a study of heads takes, and into which run it goes."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polysem.data.dataset import ImageData
from polysem.data.sources import load_data
from polysem.errors import DataError, RunError, SpecError, did_you_mean
from polysem.models.load import LoadedModel
from polysem.probe.probe import probe
from polysem.processes import Processes
from polysem.store.run import Run

__all__ = ["Images", "Numbers", "choose", "home", "partners"]

Numbers: TypeAlias = npt.NDArray[np.int64]


@contextmanager
def home(
    out: Path,
    loaded: LoadedModel,
    data: str | Path | ImageData,
    limit: int,
    device: str,
    progress: bool,
    group: Processes,
) -> Iterator[tuple[Run, ImageData]]:
    """Yield the run to add to, and its images; a new run appears when all is done."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        run = Run.open(out)
        yield run, _same(run, loaded, data)
        return
    source = data if isinstance(data, ImageData) else load_data(str(data), limit=limit)
    # processes that share the work have to agree on the name
    name = uuid.uuid4().hex[:8] if group.count == 1 else "heads"
    part = out.absolute().with_name(f".{out.absolute().name}.partial-{name}")
    try:
        run = probe(
            loaded, source, out=part, sites="blocks.*.attn.hook_z", patterns=True, device=device,
            overwrite=True, progress=progress,
        )  # fmt: skip
        if run.manifest["status"] != "complete":
            raise KeyboardInterrupt
        yield run, source
        if group.first:
            if out.exists():
                out.rmdir()  # an empty folder
            os.replace(part, out)
    finally:
        if group.first:
            shutil.rmtree(part, ignore_errors=True)


def _same(run: Run, loaded: LoadedModel, data: str | Path | ImageData) -> ImageData:
    """Return the images of a run, if model and data are those that it was made with.

    Raises
    ------
    RunError
        If they are others.
    """
    was, facts = run.manifest["model"], run.manifest["data"]
    if was["sha256"] != loaded.sha256:
        raise RunError(
            f"{run.path} is a run of other weights ({was['spec']}, {was['sha256'][:12]}) than "
            f"{loaded.spec} ({loaded.sha256[:12]}); name another folder"
        )
    limit = facts["n_images"]
    source = data if isinstance(data, ImageData) else load_data(str(data), limit=limit)
    if source.fingerprint != facts["fingerprint"]:
        raise RunError(
            f"{run.path} is a run on other images ({facts['name']}, {facts['fingerprint'][:12]}) "
            f"than {source.name} ({source.fingerprint[:12]}); name another folder"
        )
    return source


def choose(run: Run, source: ImageData, of_class: str | None, limit: int, seed: int) -> Numbers:
    """Return the numbers of the images to study: those that the probe could read, of one class.

    Raises
    ------
    DataError
        If there is none.
    SpecError
        If there is no such class.
    """
    readable = run.images["image"].to_numpy(dtype=np.int64)
    if of_class is not None:
        if source.labels is None:
            raise DataError(f"{source.name} has no labels to choose the class {of_class!r} by")
        number = _class_number(source, of_class)
        readable = readable[source.labels[readable] == number]
        if not len(readable):
            raise DataError(
                f"none of the {len(source):,} images of {source.name} is of the class "
                f"{of_class!r}; raise --limit, or choose a class that is there"
            )
    order = np.random.default_rng(seed).permutation(len(readable))[:limit]
    return np.sort(readable[order])


def _class_number(source: ImageData, of_class: str) -> int:
    assert source.labels is not None
    names = list(source.classes or ())
    if of_class in names:
        return names.index(of_class)
    n_classes = len(names) or int(source.labels.max()) + 1
    if of_class.isdecimal() and int(of_class) < n_classes:
        return int(of_class)
    known = f"; it has {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else ""
    near = did_you_mean(of_class, names) or known
    raise SpecError(f"{source.name} has no class {of_class!r}{near}")


class Images:
    """The images that are studied, held in memory as pixels.

    Attributes
    ----------
    numbers : int array [image]
        Which images of the data they are.
    pixels : Tensor
        uint8 [image, channel, y, x].
    """

    def __init__(
        self, loaded: LoadedModel, source: ImageData, numbers: Numbers, place: torch.device
    ) -> None:
        self.loaded, self.place, self.numbers = loaded, place, numbers
        self.pixels = torch.stack([loaded.transform(source.read(int(i))) for i in numbers])

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, which: Sequence[int] | Numbers) -> Tensor:
        """Return some of them as the model takes them."""
        pixels = self.pixels[torch.as_tensor(which)].to(self.place)
        images: Tensor = self.loaded.transform.normalize(pixels)
        parameter = next(self.loaded.model.parameters())
        return images.to(parameter.dtype)


def partners(n_images: int, seed: int) -> Numbers:
    """Return for each image another one, at random; itself only where it is alone."""
    ring = np.random.default_rng(seed).permutation(n_images)
    found = np.empty(n_images, dtype=np.int64)
    found[ring] = np.roll(ring, 1)
    return found
