"""Where the planted benchmark gets its units: as formulas, and from a ViT that they live in."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from polysem.analysis.k_means import k_means
from polysem.analysis.peer_scores import facet_distances
from polysem.data.planted import PlantedUnits, co_occurring, plant
from polysem.data.scenes import CONCEPTS
from polysem.data.shapes import Shapes
from polysem.data.subset import Subset
from polysem.models.load import LoadedModel, load_model
from polysem.models.splice import fit_readouts, splice_units
from polysem.models.weights import state_digest
from polysem.probe.probe import probe
from polysem.store.run import Run

__all__ = ["Case", "cases", "circuit_distance", "least_correlation"]

#: A spliced unit whose signal follows what was planted less closely than this is reported.
_REALISED = 0.7
#: Images drawn for each that is kept; company leaves out more than half.
_SPARE = 4
#: Width and noise of the ideal encoder's embeddings.
_IDEAL_DIM, _IDEAL_NOISE = 64, 0.5
#: Standard deviation of a spliced unit over training images, and its smallest value there: the
#: activation function changes neither.
_SPREAD, _FLOOR = 3.0, 4.0

Floats = npt.NDArray[np.floating]


@dataclasses.dataclass(frozen=True)
class Case:
    """Units at one level and noise, and all that a score may look at.

    Attributes
    ----------
    level : str
        ``ideal encoder``, ``signed``, ``model encoder`` or ``spliced``.
    noise : float
    activations : float array [image, unit]
    truth : int array [unit]
        Number of concepts that excite each unit.
    embeddings : float array [image, dim]
    presence : bool array [image, concept]
    labels : int array [image]
    causes, strengths : float arrays [image, cause] and [unit, cause]
        What each unit's activation adds up from: their products.
    correlation : float array [unit] or None
        With the signal planted, where the network realises the unit.
    """

    level: str
    noise: float
    activations: Floats
    truth: npt.NDArray[np.int64]
    embeddings: Floats
    presence: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    causes: Floats
    strengths: Floats
    correlation: Floats | None = None


def cases(
    model: str, *, n_images: int, per_count: int, noises: Sequence[float], seed: int
) -> Iterator[Case]:
    """Yield the cases of the benchmark, level by level.

    Where a network sees the images, units are of colours only: the shipped models were taught to
    tell these, and see little else.
    """
    drawn = Shapes("test", n=_SPARE * n_images, size=64, seed=seed, label="colour")
    data = co_occurring(drawn, n_images, seed=seed)
    presence = data.concept_matrix()
    assert data.labels is not None
    groups = np.repeat(list(CONCEPTS), [len(names) for names in CONCEPTS.values()])
    # sizes exclude each other all but wholly: two of them are hardly two things
    varied, colours = np.flatnonzero(groups != "size"), np.flatnonzero(groups == "colour")
    ideal = _ideal_embeddings(presence, seed)
    loaded = load_model(model)
    host = _Host(loaded, data, presence, colours, seed)
    for level, among, signed, embeddings in (
        ("ideal encoder", varied, False, ideal),
        ("signed", varied, True, ideal),
        ("model encoder", colours, False, host.embeddings),
    ):
        for noise in noises:
            units = plant(
                presence, noise=noise, per_count=per_count, among=list(among), signed=signed,
                seed=seed,
            )  # fmt: skip
            yield Case(
                level, noise, units.activations, units.n_concepts, embeddings, presence,
                data.labels, presence.astype(np.float64), units.weights,
            )  # fmt: skip
    planted = plant(presence, noise=0, per_count=per_count, among=list(colours), seed=seed)
    for noise in noises:
        yield host.splice(planted, noise)


def least_correlation(noise: float) -> float:
    """Return the correlation with the signal planted below which a spliced unit is reported."""
    return _REALISED / float(np.sqrt(1 + noise**2))


class _Host:
    """A network, what it shows of the images before anything is spliced, and how to splice."""

    def __init__(
        self,
        loaded: LoadedModel,
        data: Subset,
        presence: npt.NDArray[np.bool_],
        concepts: npt.NDArray[np.int64],
        seed: int,
    ) -> None:
        self.loaded, self.data, self.presence = loaded, data, presence
        self.concepts, self.seed = concepts, seed
        self.layer = max(0, len(getattr(loaded.model, "blocks", ())) - 2)
        self.reads = f"blocks.{self.layer}.ln2.hook_normalized"
        with tempfile.TemporaryDirectory() as folder:
            run = _probe(loaded, data, folder, [self.reads, "hook_pooled"])
            self.embeddings = _pooled(run, "hook_pooled", "value")
            self.causes = _pooled(run, self.reads, "mean")
        lessons = Shapes("train", n=3000, size=64, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            run = _probe(loaded, lessons, folder, [self.reads])
            self.features = torch.from_numpy(_pooled(run, self.reads, "mean")).double()
            self.lowest = torch.from_numpy(_pooled(run, self.reads, "min")).double()
            self.highest = torch.from_numpy(_pooled(run, self.reads, "max")).double()
        shown = torch.from_numpy(lessons.concept_matrix()[:, concepts]).double()
        self.readouts = fit_readouts(self.features, shown)

    def splice(self, units: PlantedUnits, noise: float) -> Case:
        """Return the units as the network shows them: their mean over tokens.

        A unit reads the sum of its concepts' read-outs, and as noise a direction of its own that
        has nothing to do with any concept's.
        """
        weights = torch.from_numpy(units.weights[:, self.concepts])
        rows = weights @ self.readouts
        off = self.features - self.features.mean(0)
        rows = rows + noise * self._elsewhere(off, rows)
        rows *= (_SPREAD / (off @ rows.T).std(0))[:, None]
        # no token of these images lies below: extremes of each dimension bound every read-out
        least = (rows.clamp(min=0) @ self.lowest.amin(0)) + (
            rows.clamp(max=0) @ self.highest.amax(0)
        )
        bias = _FLOOR - least
        model = splice_units(self.loaded.model, self.layer, rows.float(), bias.float())
        spliced = dataclasses.replace(
            self.loaded, model=model, sha256=state_digest(model.state_dict())
        )
        site = f"blocks.{self.layer}.mlp.hook_post"
        with tempfile.TemporaryDirectory() as folder:
            run = _probe(spliced, self.data, folder, [site])
            activations = _pooled(run, site, "mean")[:, -len(rows) :]
        assert self.data.labels is not None
        return Case(
            "spliced", noise, activations, units.n_concepts, self.embeddings, self.presence,
            self.data.labels, self.causes, rows.numpy(),
            correlation=_correlations(activations, units.activations),
        )  # fmt: skip

    def _elsewhere(self, off: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return random read-outs, uncorrelated with the concepts', as varied as `rows`."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
        covariance = off.T @ off / len(off)
        shared = self.readouts @ covariance
        drawn = drawn - torch.linalg.solve(shared @ self.readouts.T, shared @ drawn.T).T @ (
            self.readouts
        )
        scale = (off @ rows.T).std(0) / (off @ drawn.T).std(0)
        scaled: torch.Tensor = drawn * scale[:, None]
        return scaled


def circuit_distance(case: Case, *, k: int = 2, n_exemplars: int = 100) -> Floats:
    """Return how far apart a unit's circuits are, as PURE measures them [unit].

    Exemplars are divided by what caused the activation (activation times gradient, per exemplar
    of sum 1); the score is the mean distance of embeddings between groups over that within.
    """
    top = np.argsort(-case.activations, axis=0, kind="stable")[:n_exemplars].T
    attribution = case.causes[top] * case.strengths[:, None]  # [unit, rank, cause]
    attribution = attribution / (np.abs(attribution).sum(-1, keepdims=True) + 1e-10)
    groups, _ = k_means(torch.from_numpy(attribution), k, starts=10)
    distances = (
        facet_distances(case.embeddings[rows], group)
        for rows, group in zip(top, groups.numpy(), strict=True)
    )
    return np.array([across / within for within, across in distances])


def _ideal_embeddings(presence: npt.NDArray[np.bool_], seed: int) -> Floats:
    """Return what an encoder would give that writes each concept in a direction of its own."""
    rng = np.random.default_rng([seed, 3])
    written = presence @ rng.standard_normal((presence.shape[1], _IDEAL_DIM))
    return np.asarray(written + _IDEAL_NOISE * written.std() * rng.standard_normal(written.shape))


def _probe(loaded: LoadedModel, data: Shapes | Subset, folder: str, sites: list[str]) -> Run:
    return probe(
        loaded, data, out=Path(folder) / "run", sites=sites, top_k=1, pooled=True, sample=1
    )


def _pooled(run: Run, site: str, pool: str) -> npt.NDArray[np.float64]:
    found = run.units(site)["pooled"].sel(pool=pool).to_numpy()
    return np.asarray(found, dtype=np.float64)


def _correlations(one: Floats, other: Floats) -> Floats:
    first, second = one - one.mean(0), other - other.mean(0)
    products = (first * second).sum(0)
    return np.asarray(products / np.sqrt((first**2).sum(0) * (second**2).sum(0)))
