"""From a run to names: embed its images and a vocabulary with one CLIP model, then compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from polysem.describe.defaults import default_clip, default_vocabulary
from polysem.describe.divide import divide
from polysem.describe.embedded import embedded
from polysem.describe.facet_labels import FACET_LABELS, label_facets
from polysem.describe.labels import HEAD_LABELS, LABELS, Seen, label_heads, label_units
from polysem.describe.naming import method_of
from polysem.describe.texts import TEMPLATES, embed_vocabulary
from polysem.describe.vocabulary import Vocabulary, load_vocabulary
from polysem.errors import SpecError
from polysem.models.clip import Clip, load_clip
from polysem.progress import progress_bar
from polysem.sites import select_sites
from polysem.store.additions import add_table
from polysem.store.run import Run

__all__ = ["Names", "describe_neurons"]


@dataclass(frozen=True)
class Names:
    """The tables that a naming made, also kept in the run.

    Attributes
    ----------
    labels : DataFrame
        Columns `LABELS`: names for units.
    facets : DataFrame or None
        Columns `FACET_LABELS`, if asked for.
    heads : DataFrame or None
        Columns `HEAD_LABELS`, if asked for.
    """

    labels: pd.DataFrame
    facets: pd.DataFrame | None = None
    heads: pd.DataFrame | None = None


def describe_neurons(
    run: Run | str | Path,
    clip: str | Path | Clip | None = None,
    *,
    concepts: str | Path | Vocabulary | None = None,
    sites: str | Iterable[str] | None = None,
    method: str = "soft-wpmi",
    seen: Seen = "auto",
    facets: bool = False,
    heads: bool = False,
    top: int = 5,
    rate: float = 0.05,
    n_draws: int = 1000,
    templates: Sequence[str] = TEMPLATES,
    data: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Names:
    """Name every unit of a run by the concept that fits what excites it, with evidence.

    Tables and embeddings are kept in the run, so that another vocabulary or method needs no image
    again.

    Parameters
    ----------
    run : Run, str or Path
        Probed with ``--pooled``, names by whole images are found on half of the images and tested
        on the other; without, found on the exemplars and tested on other images of the run's
        sample. Names by crops are found on the exemplars, and tested on other images likewise.
    clip : str, Path or Clip, optional
        Anything that `load_clip` takes, such as ``ViT-B-32:laion2b_s34b_b79k``; if not given, the
        `default_clip` of the run's images.
    concepts : str, Path or Vocabulary, optional
        Anything that `load_vocabulary` takes; if not given, ``shapes`` for drawn images and else
        ``common``.
    sites : str or iterable of str, optional
        Globs over the run's sites; all of them, if not given.
    seen : {"auto", "crops", "images"}
        As in `label_units`. There are up to units times exemplars crops to embed.
    facets : bool, default False
        Name each facet too. Facets are those of the table ``facets``; where the run has none, its
        images are divided by what this model sees of them.
    heads : bool, default False
        Name attention heads too.
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
    Names

    Raises
    ------
    PolysemError
        If anything cannot be loaded, or does not belong together. Older tables stay then.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    chosen = opened.sites if sites is None else select_sites(opened.sites, sites)
    by = method_of(method)
    if facets and not by.of_exemplars:
        raise SpecError(
            f"{method} compares activations over all images, and a facet is a group of exemplars: "
            "leave --facets out, or take soft-wpmi, wpmi or mean-embedding"
        )
    if heads:
        _ = opened.heads  # a run without heads should not cost a pass over its images
    images_of = str(opened.manifest["data"]["name"])
    listed = concepts or default_vocabulary(images_of)
    words = listed if isinstance(listed, Vocabulary) else load_vocabulary(listed)
    named = clip or default_clip(images_of)
    towers = named if isinstance(named, Clip) else load_clip(named, device=device)
    texts = embed_vocabulary(towers, words, templates)
    where: dict[str, Any] = {
        "data": data, "batch_size": batch_size, "device": device, "progress": progress,
    }  # fmt: skip
    cropped = chosen if by.of_exemplars and seen != "images" else []
    pictures = embedded(opened, towers, crops=cropped, **where)
    asked: dict[str, Any] = {
        "method": method, "top": top, "rate": rate, "n_draws": n_draws, "seed": seed,
    }  # fmt: skip
    if facets:
        divide(opened, pictures, sites=chosen, progress=progress)
    by_facet = by_head = None
    with progress_bar(unit="sites", show=progress) as move:
        units = label_units(
            opened, pictures, texts, words.concepts, sites=chosen, seen=seen,
            on_site=_told(move, "name units at"), **asked,
        )  # fmt: skip
        if facets:
            by_facet = label_facets(
                opened, pictures, texts, words.concepts, sites=chosen, seen=seen,
                on_site=_told(move, "name facets at"), **asked,
            )  # fmt: skip
        if heads:
            by_head = label_heads(opened, pictures, texts, words.concepts, **asked)
    made_by = {"clip": towers.spec, "vocabulary": words.name}
    for name, table, meanings in (
        ("labels", units, LABELS),
        ("facet_labels", by_facet, FACET_LABELS),
        ("head_labels", by_head, HEAD_LABELS),
    ):
        if table is not None:
            add_table(opened, name, table, meanings=meanings, made_by=made_by)
    return Names(units, by_facet, by_head)


def _told(move: Callable[[str, int, int], None], what: str) -> Callable[[str, int, int], None]:
    return lambda site, done, total: move(f"{what} {site}", done, total)
