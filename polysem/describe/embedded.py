"""Images and crops of a run as a vision-language model sees them, kept in the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from polysem.data.again import load_again
from polysem.describe.pictures import Crops, Pictures
from polysem.device import choose_device
from polysem.errors import PolysemError, RunError
from polysem.models.clip import Clip
from polysem.models.encoder import Encoder, image_encoder
from polysem.probe.crops import embed_crops, has_places, places_of
from polysem.probe.embed import embed_images
from polysem.store.additions import add_arrays
from polysem.store.run import Run
from polysem.store.schema import EMBEDDINGS, dataset

__all__ = ["embedded"]

#: Crops at random places that tell what any crop looks like.
_BACKGROUND = 2048


def embedded(
    run: Run,
    clip: Clip,
    *,
    crops: Sequence[str],
    data: str | None,
    batch_size: int | None,
    device: str,
    progress: bool,
) -> Pictures:
    """Return what a model sees of a run; what is not kept in the run yet is embedded first.

    Images are embedded once for each data and model: another run in the same folder that has
    them on the same images gives its own.

    Parameters
    ----------
    run : Run
    clip : Clip
    crops : sequence of str
        Sites whose exemplars are seen as crops, where their places are known.
    data, batch_size, device, progress
        As for `describe_neurons`.

    Raises
    ------
    PolysemError
        If images are gone or others, or an embedding is not finite.
    """
    encoder = image_encoder(clip)
    size = batch_size or (256 if choose_device(device).type == "cuda" else 64)
    attrs = {"encoder": clip.spec, "fingerprint": encoder.fingerprint}
    values = _kept(run, encoder)
    if values is None:
        values = _of_neighbours(run, encoder)
        if values is None:
            source = load_again(run.manifest["data"], data)
            values = embed_images(run, source, encoder, size, progress=progress)
        arrays = dataset(EMBEDDINGS, {"embedding": values}, {})
        arrays["embedding"].attrs |= attrs
        add_arrays(run, "clip_embeddings", arrays)
    placed = [site for site in crops if has_places(run, site)]
    lacking = [site for site in placed if not _crops_are_kept(run, site, encoder)]
    if lacking:
        embed_crops(
            run, encoder, sites=lacking, name="clip_crops", background=_BACKGROUND,
            data=data, batch_size=batch_size, device=device, progress=progress,
        )  # fmt: skip
    return Pictures(torch.from_numpy(values), {site: _crops(run, site) for site in placed}, attrs)


def _kept(run: Run, encoder: Encoder) -> np.ndarray | None:
    """Return the embeddings of a run's images by a model, if it has them."""
    try:
        found = run.clip_embeddings
    except RunError:
        return None
    if found.attrs.get("fingerprint") != encoder.fingerprint or len(found) != len(run.images):
        return None
    return np.array(found)


def _of_neighbours(run: Run, encoder: Encoder) -> np.ndarray | None:
    """Return the same from another run in the same folder, on the same images."""
    for store in sorted(run.path.absolute().parent.glob("*/clip_embeddings.zarr")):
        try:
            other = Run.open(Path(store).parent)
            same = (
                other.manifest["data"]["fingerprint"] == run.manifest["data"]["fingerprint"]
                and other.manifest["data"]["n_images"] == run.manifest["data"]["n_images"]
                and other.images["image"].equals(run.images["image"])
            )
        except (PolysemError, KeyError):
            continue
        if same and (values := _kept(other, encoder)) is not None:
            return values
    return None


def _crops_are_kept(run: Run, site: str, encoder: Encoder) -> bool:
    """Whether a run has crops by this encoder, of the places that it now knows."""
    try:
        attrs = run.clip_crops(site)["embedding"].attrs
    except RunError:
        return False
    same = attrs.get("fingerprint") == encoder.fingerprint
    return same and attrs.get("place") == places_of(run, site).by


def _crops(run: Run, site: str) -> Crops:
    arrays = run.clip_crops(site).load()
    return Crops(
        {
            str(tail): torch.from_numpy(arrays["embedding"].sel(tail=tail).to_numpy())
            for tail in arrays["tail"].to_numpy()
        },
        torch.from_numpy(arrays["background"].to_numpy()),
    )
