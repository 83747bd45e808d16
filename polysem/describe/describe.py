"""From a run to names: embed its images and a vocabulary with one CLIP model, then compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from polysem.data.again import load_again
from polysem.describe.defaults import default_clip, default_vocabulary
from polysem.describe.labels import LABELS, label_units
from polysem.describe.vocabulary import Vocabulary, load_vocabulary
from polysem.device import choose_device
from polysem.errors import RunError
from polysem.models.clip import Clip, load_clip
from polysem.models.encoder import image_encoder
from polysem.probe.embed import embed_images
from polysem.progress import progress_bar
from polysem.sites import select_sites
from polysem.store.additions import add_arrays, add_table
from polysem.store.run import Run
from polysem.store.schema import EMBEDDINGS, dataset

__all__ = ["TEMPLATES", "describe_neurons", "embed_concepts"]

#: Sentences that a concept is put into; its embedding is their mean.
TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture of a {}",
    "a close-up of {}",
    "an image that shows {}",
)


def describe_neurons(
    run: Run | str | Path,
    clip: str | Path | Clip | None = None,
    *,
    concepts: str | Path | Vocabulary | None = None,
    sites: str | Iterable[str] | None = None,
    method: str = "soft-wpmi",
    top: int = 5,
    rate: float = 0.05,
    n_draws: int = 1000,
    templates: Sequence[str] = TEMPLATES,
    data: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Name every unit of a run by the concept that fits what excites it, with evidence.

    The table is also kept in the run, as ``tables/labels.parquet``, and the images' embeddings,
    so that another vocabulary or method needs no image again.

    Parameters
    ----------
    run : Run, str or Path
        Probed with ``--pooled``, names are found on half of the images and tested on the other;
        without, found on the exemplars and tested on other images of the run's sample.
    clip : str, Path or Clip, optional
        Anything that `load_clip` takes, such as ``ViT-B-32:laion2b_s34b_b79k``; if not given, the
        `default_clip` of the run's images.
    concepts : str, Path or Vocabulary, optional
        Anything that `load_vocabulary` takes; if not given, ``shapes`` for drawn images and else
        ``common``.
    sites : str or iterable of str, optional
        Globs over the run's sites; all of them, if not given.
    method, top, rate, n_draws, seed
        As in `label_units`.
    templates : sequence of str
        Each with one ``{}``.
    data : str, optional
        Where the images are, if they have moved.
    batch_size : int, optional
        Images per pass; 64 on a CPU, 256 on a GPU.
    device : str, default "auto"
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Returns
    -------
    DataFrame
        Columns `LABELS`.

    Raises
    ------
    PolysemError
        If anything cannot be loaded, or does not belong together. An older table stays then.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    chosen = opened.sites if sites is None else select_sites(opened.sites, sites)
    images_of = str(opened.manifest["data"]["name"])
    listed = concepts or default_vocabulary(images_of)
    words = listed if isinstance(listed, Vocabulary) else load_vocabulary(listed)
    asked = clip or default_clip(images_of)
    towers = asked if isinstance(asked, Clip) else load_clip(asked, device=device)
    texts = embed_concepts(towers, words.concepts, templates)
    images = _embedded(opened, towers, data, batch_size, device, progress=progress)
    with progress_bar(show=progress) as move:
        table = label_units(
            opened, images, texts, words.concepts, sites=chosen, method=method, top=top,
            rate=rate, n_draws=n_draws, seed=seed,
            on_site=lambda site, done, total: move(f"name {site}", done, total),
        )  # fmt: skip
    add_table(opened, "labels", table, meanings=LABELS)
    return table


def embed_concepts(clip: Clip, concepts: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return one embedding a concept [concept, dim]: the mean over templates, of length 1."""
    total = torch.stack([
        clip.embed_texts([template.replace("{}", concept) for concept in concepts])
        for template in templates
    ]).mean(0)  # fmt: skip
    return torch.nn.functional.normalize(total, dim=1)


def _embedded(
    run: Run, clip: Clip, data: str | None, batch_size: int | None, device: str, *, progress: bool
) -> Tensor:
    """Return the run's images as CLIP embeds them, kept in the run from the first time on."""
    encoder = image_encoder(clip)
    try:
        kept = run.clip_embeddings
        if kept.attrs.get("fingerprint") == encoder.fingerprint and len(kept) == len(run.images):
            return torch.from_numpy(np.array(kept))
    except RunError:
        pass
    size = batch_size or (256 if choose_device(device).type == "cuda" else 64)
    source = load_again(run.manifest["data"], data)
    values = embed_images(run, source, encoder, size, progress=progress)
    arrays = dataset(EMBEDDINGS, {"embedding": values}, {})
    arrays["embedding"].attrs |= {"encoder": clip.spec, "fingerprint": encoder.fingerprint}
    add_arrays(run, "clip_embeddings", arrays)
    return torch.from_numpy(values)
