"""Neurons of known meaning in a real network: what the benchmark of names holds names against.

Each neuron reads a token for one concept, or for either of two, and is written into the MLP of a
block. It is then probed, cropped, divided and named like any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polysem.data.scenes import CONCEPTS
from polysem.data.shapes import Shapes
from polysem.describe.pictures import Crops, Pictures
from polysem.models.hooked import HookedVisionModel
from polysem.models.load import LoadedModel
from polysem.models.splice import fit_readouts, splice_units
from polysem.models.weights import state_digest
from polysem.probe.crops import crop_box, places_of
from polysem.probe.probe import probe
from polysem.store.run import Run

__all__ = ["Planted", "ideal_pictures", "ideal_texts", "plant_names"]

#: Images that read-outs are learnt from, and those that tell which are good enough.
_LESSONS, _TRIALS = 800, 1000
#: A concept is planted if so many of a read-out's strongest tokens show it.
_PRECISION, _STRONGEST = 0.9, 32
#: Least share of a unit's exemplars that show a concept which the unit is said to answer to.
_REALISED = 0.2
#: A token shows a concept that covers so much of its patch; a crop likewise.
_COVER, _CROP_COVER = 0.3, 0.1
#: A neuron's value before its activation function at a token that shows its concept, and at
#: others: it fires for what it answers to, and hardly otherwise.
_FIRES, _REST = 2.0, -2.0
#: Size of images, and side of the network's patches, in pixels.
_SIZE = 64


@dataclass(frozen=True)
class Planted:
    """A run with neurons of known meaning.

    Attributes
    ----------
    run : Run
        Of one site for each block with planted neurons.
    data : Shapes
        What it was probed on.
    truth : list of (str, int, tuple of str)
        Site, unit and the concepts it answers to.
    realised : list of bool
        Whether each concept is shown where the unit fired in a fifth of its exemplars at least, and
        no other concept sets these places more apart. A unit of which that is not so does not
        answer to what was planted: a network of colours may show "large" by what is large and
        orange.
    left_out : dict of str to float
        Concepts of the images that the network does not tell token by token well enough to be
        planted, and the precision of their best read-out.
    """

    run: Run
    data: Shapes
    truth: list[tuple[str, int, tuple[str, ...]]]
    realised: list[bool]
    left_out: dict[str, float]


def plant_names(
    loaded: LoadedModel,
    out: Path,
    *,
    layers: Sequence[int],
    n_images: int = 2000,
    top_k: int = 48,
    noise: float = 0.25,
    copies: int = 2,
    seed: int = 0,
) -> Planted:
    """Write neurons into a network and probe it on drawn images.

    Parameters
    ----------
    loaded : LoadedModel
        A standard ViT that takes images of 64 pixels.
    out : Path
        Folder of the run.
    layers : sequence of int
        Blocks that get neurons, the same for each.
    n_images : int
        Drawn images that are probed.
    top_k : int
        Exemplars a unit.
    noise : float
        Standard deviation of what a neuron reads besides, in standard deviations of its signal.
    copies : int
        Neurons for each concept of which the noise differs.
    seed : int
        Of images and noise.
    """
    shown = _tokens(Shapes("train", n=_LESSONS, size=_SIZE, seed=seed))
    tried = Shapes("train", n=_LESSONS + _TRIALS, size=_SIZE, seed=seed)
    later = range(_LESSONS, _LESSONS + _TRIALS)
    seen = _tokens(tried, later)
    model, truth = loaded.model, []
    left_out: dict[str, float] = {}
    for layer in layers:
        reads = f"blocks.{layer}.ln2.hook_normalized"
        lessons = _features(loaded, tried, range(_LESSONS), reads)
        trials = _features(loaded, tried, later, reads)
        rows = fit_readouts(lessons.flatten(0, 1), shown.flatten(0, 1))
        precision = _precision(trials.double() @ rows.T, seen)
        names = [name for name, good in zip(tried.concepts, precision, strict=True)
                 if good >= _PRECISION]  # fmt: skip
        left_out |= {
            name: max(float(good), left_out.get(name, 0))
            for name, good in zip(tried.concepts, precision, strict=True)
            if good < _PRECISION
        }
        sets = _sets(names, copies)
        numbers = [tuple(map(tried.concepts.index, concepts)) for concepts in sets]
        mixed, offset = _neurons(trials, seen, rows, numbers, noise, seed + layer)
        n_own = model.blocks[layer].mlp.fc1.out_features  # type: ignore[union-attr,index]
        model = splice_units(model, layer, mixed.float(), offset.float())
        site = f"blocks.{layer}.mlp.hook_post"
        truth += [(site, n_own + unit, concepts) for unit, concepts in enumerate(sets)]
    spliced = dataclasses.replace(loaded, model=model, sha256=state_digest(model.state_dict()))
    data = Shapes("test", n=n_images, size=_SIZE, seed=seed)
    sites = list(dict.fromkeys(site for site, _, _ in truth))
    run = probe(spliced, data, out=out, sites=sites, top_k=top_k)
    return Planted(run, data, truth, _realised(run, data, truth), left_out)


def ideal_texts(vocabulary: Sequence[str], concepts: Sequence[str]) -> Tensor:
    """Return what an encoder without error makes of words [word, concept], of length 1.

    Each concept of the images has a direction of its own; a word that names several is their sum,
    and one that names none has a direction that no image shows.
    """
    found = torch.zeros(len(vocabulary), len(concepts) + len(vocabulary))
    for row, words in enumerate(vocabulary):
        named = [words] if words in concepts else words.split()
        hits = [concepts.index(word) for word in named if word in concepts]
        found[row, hits if len(hits) == len(named) else [len(concepts) + row]] = 1
    return torch.nn.functional.normalize(found, dim=1)


def ideal_pictures(planted: Planted, n_words: int, *, n_background: int = 2048) -> Pictures:
    """Return what an encoder without error sees of a run: which concepts are in a picture.

    Parameters
    ----------
    planted : Planted
    n_words : int
        Of the vocabulary, which has as many directions besides.
    n_background : int
        Crops at random places.
    """
    data = planted.data
    masks = np.stack([data.masks(image) for image in range(len(data))])
    rng = np.random.default_rng(0)

    def embedded(presence: npt.NDArray[np.bool_]) -> Tensor:
        wide = np.pad(presence.astype(np.float32), ((0, 0), (0, n_words)))
        return torch.nn.functional.normalize(torch.from_numpy(wide), dim=1)

    def cropped(at: npt.NDArray[np.float64], grid: tuple[int, int]) -> Tensor:
        shown = np.empty((at.shape[1], masks.shape[1]), dtype=np.bool_)
        for row, (image, y, x) in enumerate(at.astype(np.int64).T):
            left, top, right, bottom = crop_box(int(y), int(x), grid, (_SIZE, _SIZE))
            part = masks[image, :, top:bottom, left:right]
            shown[row] = part.mean((1, 2)) >= _CROP_COVER
        return embedded(shown)

    crops = {}
    for site in planted.run.sites:
        places = places_of(planted.run, site)
        there = np.isfinite(places.at).all(0)
        values = torch.full((*there.shape, masks.shape[1] + n_words), torch.nan)
        values[torch.from_numpy(there)] = cropped(places.at[:, there], places.grid)
        anywhere = np.stack([
            rng.integers(len(data), size=n_background),
            *(rng.integers(n, size=n_background) for n in places.grid),
        ]).astype(np.float64)  # fmt: skip
        tails = planted.run.units(site)["tail"].to_numpy()
        exemplars = {str(tail): values[place] for place, tail in enumerate(tails)}
        crops[site] = Crops(exemplars, cropped(anywhere, places.grid))
    return Pictures(embedded(data.concept_matrix()), crops, {"encoder": "ideal", "fingerprint": ""})


def _tokens(data: Shapes, images: Sequence[int] | None = None, patch: int = 8) -> Tensor:
    """Return how much of each patch shows each concept [image, token, concept]."""
    shown = []
    for image in range(len(data)) if images is None else images:
        masks = data.masks(image).astype(np.float64)
        side = _SIZE // patch
        cells = masks.reshape(len(masks), side, patch, side, patch).mean((2, 4))
        shown.append(cells.reshape(len(masks), -1).T)
    return torch.from_numpy(np.stack(shown))


def _features(loaded: LoadedModel, data: Shapes, images: Sequence[int], site: str) -> Tensor:
    """Return what is read of each patch [image, token, d_model]."""
    hooked = HookedVisionModel(loaded.model)
    parts = []
    for start in range(0, len(images), 100):
        pixels = torch.stack([loaded.transform(data.read(i)) for i in images[start : start + 100]])
        with torch.inference_mode():
            _, cache = hooked.run_with_cache(
                loaded.transform.normalize(pixels), names_filter=lambda name: name == site
            )
        parts.append(cache[site].clone())
    return torch.cat(parts)


def _realised(
    run: Run, data: Shapes, truth: Sequence[tuple[str, int, tuple[str, ...]]]
) -> list[bool]:
    """Return whether what was planted sets the exemplars of each unit apart, and nothing more so.

    What the tokens show at which the unit peaks is compared with what all tokens show, by the
    divergence KL(share among peaks ‖ share among all): of tokens that show any of the planted
    concepts, and of each other concept.
    """
    shown = _tokens(data) >= _COVER  # [image, token, concept]
    everywhere = shown.double().mean((0, 1))
    told = []
    at = {site: places_of(run, site).at[:, 0] for site in run.sites}
    for site, unit, concepts in truth:
        places = at[site][:, unit]
        image, y, x = torch.from_numpy(places[:, np.isfinite(places).all(0)]).long()
        peaks = shown[image, y * run.units(site).sizes["x"] + x]
        planted = [data.concepts.index(name) for name in concepts]
        others = _apart(peaks.double().mean(0), everywhere)
        others[planted] = 0
        either = _apart(
            peaks[:, planted].any(1).double().mean(), shown[..., planted].any(2).double().mean()
        )
        least = peaks[:, planted].double().mean(0).min()
        told.append(bool(least >= _REALISED and either > others.max()))
    return told


def _apart(share: Tensor, base: Tensor) -> Tensor:
    """Return KL(share ‖ base) of yes and no, 0 where the share is below the base."""
    base = base.clamp(1e-6, 1 - 1e-6)
    found = torch.xlogy(share, share / base) + torch.xlogy(1 - share, (1 - share) / (1 - base))
    return found.masked_fill(share < base, 0)


def _precision(found: Tensor, shown: Tensor) -> npt.NDArray[np.float64]:
    """Return how many of the strongest tokens, each of another image, show the concept."""
    peak, token = found.max(dim=1)  # [image, concept]
    best = peak.topk(_STRONGEST, dim=0).indices
    concepts = torch.arange(found.shape[2])
    hits = shown[best, token.gather(0, best), concepts] >= _COVER
    return hits.double().mean(0).numpy()


def _neurons(
    trials: Tensor,
    shown: Tensor,
    rows: Tensor,
    sets: Sequence[tuple[int, ...]],
    noise: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return rows and biases of neurons that rest at `_REST` and fire at `_FIRES` for concepts.

    Parameters
    ----------
    trials, shown : Tensor
        What is read of other images [image, token, d_model], and what these tokens show [image,
        token, concept].
    rows : Tensor
        Read-outs [concept, d_model].
    sets : sequence of tuple of int
        One or two concepts of each neuron.
    noise : float
        Standard deviation over tokens of what is read besides, in those of the signal.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = trials.double()
    found = tokens @ rows.T
    centre = found.flatten(0, 1).median(0).values
    found = found - centre
    peak, token = found.max(dim=1)
    best = peak.topk(_STRONGEST, dim=0).indices  # [strongest, concept]
    loud = found[best, token.gather(0, best)].mean(0)  # [concept shown, concept read]
    made, biases = [], []
    for concepts in sets:
        some = torch.tensor(concepts)
        alone = torch.linalg.inv(loud[some][:, some]).T @ rows[some]  # 1 at its own, 0 at the other
        random = torch.randn(rows.shape[1], generator=generator).double()
        spread = (tokens @ alone.sum(0)).std() / (tokens @ random).std()
        random = noise * spread * random
        row = alone.sum(0) + random
        if len(concepts) == 2:
            row = random + _balanced(tokens, shown[..., some], alone, random) @ alone
        value = tokens @ row
        rest, top = value.median(), value.amax(1).topk(_STRONGEST).values.mean()
        gain = (_FIRES - _REST) / (top - rest)
        made.append(gain * row)
        biases.append(_REST - gain * rest)
    return torch.stack(made), torch.stack(biases)


def _balanced(tokens: Tensor, shown: Tensor, alone: Tensor, random: Tensor) -> Tensor:
    """Return weights of two read-outs by which the strongest tokens show either equally often."""
    low, high = -0.8, 0.8
    for _ in range(10):
        tilt = (low + high) / 2
        weights = torch.tensor([1 + tilt, 1 - tilt]).double()
        peak, token = (tokens @ (weights @ alone + random)).max(dim=1)
        best = peak.topk(_STRONGEST).indices
        first, second = (shown[best, token[best]] >= _COVER).sum(0)
        low, high = (low, tilt) if first > second else (tilt, high)
    return weights


def _sets(names: Sequence[str], copies: int) -> list[tuple[str, ...]]:
    """Return one concept, or two that no token shows at once: each several times."""
    group = {
        f"{name} background" if kind == "background" else name: kind
        for kind, members in CONCEPTS.items()
        for name in members
    }
    pairs = [
        pair for pair in combinations(names, 2)
        if group[pair[0]] == group[pair[1]] or "background" in (group[pair[0]], group[pair[1]])
    ]  # fmt: skip
    single: list[tuple[str, ...]] = [(name,) for name in names for _ in range(copies)]
    return [*single, *pairs]
