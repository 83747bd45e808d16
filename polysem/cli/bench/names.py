"""The benchmark of names: planted neurons, each similarity function, and how often it is right."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from polysem.cli.bench.planted_names import Planted, ideal_pictures, ideal_texts, plant_names
from polysem.describe.divide import divide
from polysem.describe.embedded import embedded
from polysem.describe.facet_labels import label_facets
from polysem.describe.labels import label_units
from polysem.describe.naming import METHODS
from polysem.describe.pictures import Pictures
from polysem.describe.texts import embed_vocabulary
from polysem.describe.vocabulary import load_vocabulary
from polysem.models.clip import Clip, load_clip
from polysem.models.load import load_model
from polysem.store.run import Run

__all__ = ["names_benchmark"]

#: Blocks that get neurons, as shares of the network's depth.
_DEPTHS = (0.25, 0.625)
#: Draws of the null: p-values are not what is measured here.
_DRAWS = 20


def names_benchmark(
    model: str,
    clip: str | Path | Clip | None,
    *,
    n_images: int = 2000,
    top_k: int = 48,
    copies: int = 2,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Hold names against neurons of known meaning.

    Parameters
    ----------
    model : str
        Standard ViT that neurons are spliced into.
    clip : str, Path, Clip or None
        None for the ideal encoder alone.
    n_images : int
        Drawn images that are probed.
    top_k : int
        Exemplars a unit.
    copies : int
        Neurons for each concept.
    seed : int
        Of images and neurons.
    report : callable
        Told about each encoder that is done.

    Returns
    -------
    table : DataFrame
        Columns method, k, hit_rate, chance, encoder, seen, by, units (that count) and
        hit_rate_of_all (with those that do not answer to what was planted).
    units : DataFrame
        A row for each neuron and way of naming it: site, unit, planted, names, hit, counts.
    notes : list of str
        What was left out and why.
    """
    words = load_vocabulary("shapes").concepts
    loaded = load_model(model)
    n_layers = len(getattr(loaded.model, "blocks", ()))
    layers = sorted({int(depth * n_layers) for depth in _DEPTHS})
    with tempfile.TemporaryDirectory() as folder:
        planted = plant_names(
            loaded, Path(folder) / "run", layers=layers, n_images=n_images, top_k=top_k,
            copies=copies, seed=seed,
        )  # fmt: skip
        notes = _notes(planted)
        report(f"{len(planted.truth)} neurons planted in blocks {', '.join(map(str, layers))}")
        ideal = ideal_pictures(planted, len(words))
        encoders = [("ideal", ideal, ideal_texts(words, planted.data.concepts))]
        if clip is not None:
            towers = clip if isinstance(clip, Clip) else load_clip(clip)
            seen = embedded(
                planted.run, towers, crops=planted.run.sites, data=planted.data.name,
                batch_size=None, device="cpu", progress=False,
            )  # fmt: skip
            encoders.append(("clip", seen, embed_vocabulary(towers, load_vocabulary("shapes"))))
        rows = []
        for name, pictures, texts in encoders:
            for what in ("crops", "images"):
                run = _copy(planted.run, f"{name}-{what}")
                looked = pictures if what == "crops" else Pictures(pictures.images)
                divide(run, looked, sites=run.sites, progress=False)
                rows += [
                    {"encoder": name, "seen": what, **row}
                    for row in _named(run, planted, looked, texts, words, seed)
                ]
                report(f"{name} encoder, {what}: done")
    units = pd.DataFrame(rows)
    keys = ["encoder", "seen", "by", "method", "k"]
    grouped = units[units["counts"]].groupby(keys, sort=False)
    table = grouped.agg(hit_rate=("hit", "mean"), chance=("chance", "mean"), units=("hit", "size"))
    table["hit_rate_of_all"] = units.groupby(keys, sort=False)["hit"].mean()
    columns = ["method", "k", "hit_rate", "chance", "encoder", "seen", "by", "units"]
    return table.reset_index()[[*columns, "hit_rate_of_all"]], units, notes


def _notes(planted: Planted) -> list[str]:
    poor = [f"{name} {value:.2f}" for name, value in sorted(planted.left_out.items())]
    unrealised = sum(not good for good in planted.realised)
    return [
        "not planted, as the network does not tell them token by token (share of the strongest "
        f"tokens that show it): {', '.join(poor)}",
        f"{unrealised} of {len(planted.truth)} neurons do not count (hit_rate_of_all has them): "
        "another concept sets apart the places where they fire more than what was planted",
    ]


def _copy(run: Run, name: str) -> Run:
    path = run.path.with_name(name)
    shutil.copytree(run.path, path)
    return Run.open(path)


def _named(
    run: Run,
    planted: Planted,
    pictures: Pictures,
    texts: Tensor,
    words: tuple[str, ...],
    seed: int,
) -> Iterator[dict[str, object]]:
    """Yield what each planted neuron is called by each similarity function."""
    n_words = len(words)
    for method in METHODS.values():
        if pictures.crops and not method.of_exemplars:
            continue
        labels = label_units(
            run, pictures, texts, words, method=method.name, top=2, n_draws=_DRAWS, seed=seed
        )
        called = labels.groupby(["site", "unit"])["concept"].agg(list)
        ways = {"unit": called}
        if method.of_exemplars:
            facets = label_facets(
                run, pictures, texts, words, method=method.name, top=1, n_draws=_DRAWS, seed=seed
            )
            ways["facets"] = facets.groupby(["site", "unit"])["concept"].agg(list)
        for by, names in ways.items():
            for (site, unit, concepts), good in zip(planted.truth, planted.realised, strict=True):
                k = len(concepts)
                if k == 1 and by == "facets":
                    continue
                given = list(dict.fromkeys(names.get((site, unit), [])))
                given = given[:k] if by == "unit" else given
                yield {
                    "method": method.name, "k": k, "by": by, "site": site, "unit": unit,
                    "planted": " + ".join(concepts), "names": " + ".join(given),
                    "hit": set(concepts) <= set(given), "counts": good,
                    "chance": _chance(len(given), k, n_words),
                }  # fmt: skip


def _chance(n_names: int, k: int, n_words: int) -> float:
    """Return how likely different names drawn at random hold k concepts.

    >>> _chance(1, 1, 157) == 1 / 157
    True
    """
    terms = ((n_names - i) / (n_words - i) for i in range(k))
    return float(np.prod([max(0.0, term) for term in terms]))
