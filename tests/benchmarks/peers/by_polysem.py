"""The same work by polysem."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from polysem.analysis.monosemanticity import monosemanticity_score
from polysem.analysis.peer_scores import clarity_score
from polysem.data.dataset import ImageData
from polysem.describe.pmi import soft_wpmi
from polysem.describe.scoring import best_concepts, top_images
from polysem.describe.similarity import mean_embedding
from polysem.describe.view import View
from polysem.models.load import LoadedModel
from polysem.models.transform import Transform
from polysem.probe.assemble import assemble
from polysem.probe.batches import Decoded
from polysem.probe.exemplars import Exemplars
from polysem.probe.recorder import Recorder
from polysem.store.journal import Journal
from polysem.store.run import Run

__all__ = ["Search", "clarity", "label", "label_by_mean", "monosemanticity", "recorder"]

_SITES = ("*.mlp.hook_post", "*.attn.hook_z")


class _Unread(ImageData):
    """Names of pictures whose pixels the comparison hands over itself."""

    fingerprint = "drawn"

    def __init__(self, n_images: int) -> None:
        super().__init__("drawn", [str(i) for i in range(n_images)])

    def read(self, index: int) -> Image.Image:
        raise NotImplementedError


class _Probe:
    """A probe fed batch by batch; its result is a whole run, written and read again."""

    pixels = True  # it scales them itself

    def __init__(self, model: nn.Module, k: int) -> None:
        size = tuple(model.patch_embed.img_size)
        halves = (0.5, 0.5, 0.5)
        loaded = LoadedModel(
            model, Transform(size=size, mean=halves, std=halves), None, "vit", "drawn", "0" * 64
        )
        self.folder = tempfile.TemporaryDirectory()
        self.journal = Journal(Path(self.folder.name) / "run", {})
        self.journal.__enter__()
        self.recorder = Recorder(
            loaded, _Unread(1 << 16), sites=_SITES, top_k=k, pooled=False,
            patterns=False, sample=1024, device=torch.device("cpu"), precision="fp32",
        )  # fmt: skip
        self.recorder.journal = self.journal
        self.n_images = 0

    def batch(self, pixels: Tensor) -> None:
        """Record one batch of uint8 pixels."""
        indices = list(range(self.n_images, self.n_images + len(pixels)))
        with self.recorder.recording():
            self.recorder.update(Decoded(indices, pixels, []))
        self.n_images += len(pixels)

    def result(self) -> dict[str, Tensor]:
        """Finish the run, and read from it what the rows are compared by."""
        self.recorder.flush()
        assemble(self.recorder, self.journal, overwrite=False, interrupted=False, seconds=0)
        run = Run.open(Path(self.folder.name) / "run")
        neurons, heads, top = [], [], []
        for site in run.sites:
            units = run.units(site)
            if site.endswith("attn.hook_z"):
                heads.append(units["mean"].sel(pool="mean").to_numpy())
            else:
                neurons.append(units["mean"].sel(pool="max").to_numpy())
                top.append(units["top_image"].sel(tail="upper").to_numpy())
        return {
            "neuron_mean": torch.from_numpy(np.concatenate(neurons)),
            "head_mean": torch.from_numpy(np.concatenate(heads)),
            "top_image": torch.from_numpy(np.nan_to_num(np.concatenate(top), nan=-1)).long(),
        }


def recorder(model: nn.Module, k: int) -> _Probe:
    """Return a probe of all neurons and heads with its default statistics."""
    return _Probe(model, k)


class Search:
    """The probe's accumulator of exemplars."""

    def __init__(self, n_units: int, k: int) -> None:
        self.kept = Exemplars(k, n_units, 0)

    def update(self, values: Tensor, start: int) -> None:
        """Offer a batch [image, unit] whose first image is number `start`."""
        self.kept.update(values, torch.arange(start, start + len(values)))

    def result(self) -> Tensor:
        """Return image numbers [unit, rank]."""
        return self.kept.ranked()[1].long()


def label(activations: Tensor, images: Tensor, texts: Tensor) -> Tensor:
    """Return the best concept of each unit by soft-WPMI, its prior over units as published."""
    view = View(images, texts)
    scorer = soft_wpmi(top_images(activations, 100), view, prior="layer")
    return best_concepts(scorer, view, 1)[1][:, 0]


def label_by_mean(exemplars: Tensor, images: Tensor, texts: Tensor) -> Tensor:
    """Return the best concept of each unit by the mean embedding of its exemplars."""
    view = View(images, texts)
    return best_concepts(mean_embedding(exemplars, view), view, 1)[1][:, 0]


def monosemanticity(activations: Tensor, embeddings: Tensor) -> Tensor:
    """Return the score [unit] in closed form."""
    return torch.from_numpy(monosemanticity_score(activations.numpy(), embeddings.numpy()))


def clarity(exemplars: Tensor) -> Tensor:
    """Return semanticlens's clarity [unit]."""
    return torch.from_numpy(clarity_score(exemplars.numpy()))


def forget(probe: Any) -> None:
    """Remove the files of a probe."""
    probe.folder.cleanup()
