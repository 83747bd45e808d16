"""A baseline for units: what the features of a learnt dictionary answer to, by the same scores.

A dictionary is fitted to the activations of a layer on half of the images; units and features
are then scored alike on the other half. Dictionaries are overcomplete's (Fel et al.), an optional
extra.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from polysem._overcomplete import import_overcomplete
from polysem.analysis.effects import median_difference
from polysem.analysis.excess_rank import excess_rank
from polysem.analysis.excitation import hoyer_sparsity
from polysem.analysis.faces import Face, chosen_sites, faces
from polysem.analysis.monosemanticity import monosemanticity_score
from polysem.analysis.scaling import Floats, unit_interval
from polysem.analysis.selectivity import class_means, effective_classes, selectivity_index
from polysem.errors import DataError
from polysem.progress import progress_bar
from polysem.store.additions import add_table
from polysem.store.run import Run

__all__ = ["DICTIONARIES", "MEANINGS", "dictionary_baseline", "nmf", "topk_sae"]

#: What the columns of ``tables/dictionary.parquet`` hold.
MEANINGS = {
    "site": "where in the network",
    "dictionary": "how the features were found",
    "features": "features that are not constant on the held-out images",
    "images": "held-out images that units and features are scored on",
    "explained": "share of the held-out variance that the dictionary explains, at most 1",
    "score": "which score; as in tables/polysemanticity.parquet",
    "units_median": "its median over the units' faces",
    "features_median": "its median over the features",
    "difference": "features minus units",
    "difference_low": "lower end of its 95 % interval over units and features",
    "difference_high": "upper end",
}

#: Steps and images a step of an autoencoder's training.
_STEPS, _BATCH = 1000, 128

Codes = npt.NDArray[np.float64]

#: A dictionary: from training and held-out activations, both in [0, 1], to held-out codes
#: [image, feature] and what they decode to.
Dictionary = Callable[[Floats, Floats, int], tuple[Codes, Codes]]


def nmf(train: Floats, held_out: Floats, n_features: int) -> tuple[Codes, Codes]:
    """Factor activations into non-negative features and codes (overcomplete's `NMF`)."""
    model = import_overcomplete().NMF(n_features, solver="mu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.fit(torch.from_numpy(train).float(), max_iter=200)
        codes = model.encode(torch.from_numpy(held_out).float(), max_iter=200)
        return _numpy(codes), _numpy(model.decode(codes))


def topk_sae(train: Floats, held_out: Floats, n_features: int) -> tuple[Codes, Codes]:
    """Train a sparse autoencoder that keeps the largest tenth of its codes (`TopKSAE`)."""
    overcomplete = import_overcomplete()
    mean = train.mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = overcomplete.TopKSAE(train.shape[1], n_features, top_k=max(1, n_features // 10))
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        images = torch.from_numpy(train - mean).float()
        model.train()
        for _ in range(_STEPS):
            rows = torch.randperm(len(images))[:_BATCH]
            optimiser.zero_grad()
            reconstructed = model(images[rows])[2]
            ((reconstructed - images[rows]) ** 2).mean().backward()
            optimiser.step()
        model.eval()
        with torch.no_grad():
            _, codes, decoded = model(torch.from_numpy(held_out - mean).float())
    return _numpy(codes), _numpy(decoded) + mean


#: By the name that the command takes.
DICTIONARIES: dict[str, Dictionary] = {each.__name__: each for each in (nmf, topk_sae)}


def dictionary_baseline(
    run: Run,
    dictionary: Dictionary = nmf,
    *,
    sites: str | None = None,
    n_features: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Score a dictionary's features beside the units and keep the table in the run.

    Parameters
    ----------
    run : Run
        With embeddings or labels, better both.
    dictionary : callable, default `nmf`
        One of `DICTIONARIES`, or any function of the same kind.
    sites : str, optional
        Globs of sites, comma-separated; by default all.
    n_features : int, optional
        Features of the dictionary; by default as many as units, but at most a quarter of the
        images that it is fitted to.
    progress : bool, default True
        Draw a progress bar if the terminal can.

    Returns
    -------
    DataFrame
        A row for each site and score, columns as in `MEANINGS`; also
        ``tables/dictionary.parquet``.

    Raises
    ------
    DataError
        If fewer than 16 images' activations are stored.
    MissingError
        If overcomplete is not installed.
    """
    rows: list[dict[str, Any]] = []
    chosen = chosen_sites(run, sites)
    with progress_bar(unit="sites", show=progress) as move:
        for done, site in enumerate(chosen):
            rows += _site_rows(faces(run, site), dictionary, n_features)
            move("dictionary", done + 1, len(chosen))
    table = pd.DataFrame(rows, columns=list(MEANINGS))
    add_table(run, "dictionary", table, meanings=MEANINGS)
    table.attrs = {"columns": MEANINGS}
    return table


def _site_rows(
    of_site: list[Face], dictionary: Dictionary, n_features: int | None
) -> list[dict[str, Any]]:
    run, rows = of_site[0].run, of_site[0].rows
    scaled = np.concatenate(
        [unit_interval(face.activations[:, ~face.constant]) for face in of_site], axis=1
    )
    scaled = scaled[:, np.isfinite(scaled).all(0)]  # constant in the sample alone
    order = np.random.default_rng(0).permutation(len(rows))
    train, test = np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :])
    if len(train) < 8:
        raise DataError(
            f"{run.path} holds the activations of {len(rows)} images; a dictionary needs 16: "
            "probe more images, or with a larger --sample"
        )
    if not scaled.shape[1]:
        return []
    n_features = n_features or min(of_site[0].n_units, max(1, len(train) // 4))
    codes, decoded = dictionary(scaled[train], scaled[test], n_features)
    off = ((scaled[test] - decoded) ** 2).sum()
    spread = ((scaled[test] - scaled[test].mean(0)) ** 2).sum()
    common = {
        "site": of_site[0].site,
        "dictionary": getattr(dictionary, "__name__", "dictionary"),
        "features": int((codes != codes[:1]).any(0).sum()),
        "images": len(test),
        "explained": float(1 - off / spread) if spread > 0 else float("nan"),
    }
    found = []
    for name, score in _scores(run, rows[test]).items():
        units, features = score(scaled[test]), score(codes)
        difference, low, high = median_difference(features, units)
        found.append(
            common
            | {
                "score": name,
                "units_median": _median(units),
                "features_median": _median(features),
                "difference": difference,
                "difference_low": low,
                "difference_high": high,
            }
        )
    return found


def _scores(run: Run, rows: npt.NDArray[np.int64]) -> dict[str, Callable[[Floats], Codes]]:
    """Return the scores that the run's labels and embeddings allow."""
    found: dict[str, Callable[[Floats], Codes]] = {"hoyer": hoyer_sparsity}
    labels = run.images["label"].to_numpy()[rows]
    if not pd.isna(labels).any() and len(set(labels)) > 1:
        known = labels.astype(np.int64)
        found["selectivity"] = lambda a: selectivity_index(class_means(a, known))
        found["effective_classes"] = lambda a: effective_classes(class_means(a, known))
    if (run.path / "embeddings.zarr").is_dir():
        embeddings = run.embeddings.to_numpy()[rows]
        found["ms"] = partial(monosemanticity_score, embeddings=embeddings)
        found["excess_rank"] = partial(excess_rank, embeddings=embeddings)
    return found


def _median(values: Codes) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _numpy(value: torch.Tensor) -> Codes:
    return value.detach().double().numpy()
