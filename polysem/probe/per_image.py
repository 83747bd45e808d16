"""What a probe keeps of every single image, held back until there is enough to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from polysem.store.writer import RunWriter

__all__ = ["ImageRows", "Stream"]


@dataclass
class ImageRows:
    """Rows of images.parquet.

    Attributes
    ----------
    comparable : bool
        Whether the model's outputs stand for the data's classes, so that loss and correctness
        mean something.
    """

    comparable: bool
    waiting: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, logits: Tensor, indices: Sequence[int], keys: Sequence[str], labels: Tensor | None
    ) -> None:
        """Add a batch: outputs [image, class], and labels [image] on the host or None."""
        logits = logits.float().cpu()
        prediction = logits.argmax(1)
        missing = [None] * len(keys)
        rows = {
            "image": list(indices),
            "key": list(keys),
            "label": missing if labels is None else labels.numpy(),
            "prediction": prediction.numpy(),
            "loss": missing,
            "correct": missing,
        }
        if self.comparable and labels is not None:
            rows["loss"] = nn.functional.cross_entropy(logits, labels, reduction="none").numpy()
            rows["correct"] = (prediction == labels).numpy()
        self.waiting.append(rows)

    def flush(self, writer: RunWriter) -> None:
        """Write what is waiting."""
        for rows in self.waiting:
            writer.add_images(rows)
        self.waiting.clear()


@dataclass
class Stream:
    """One per-image tensor of each of several sites, image axis first."""

    sites: Sequence[str]
    waiting: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, site: str, values: Tensor) -> None:
        """Add a batch [image, ...] of one site."""
        self.waiting.setdefault(site, []).append(values)

    def take(self) -> dict[str, Tensor]:
        """Return what is waiting by site, joined and on the host, and forget it."""
        joined = {site: torch.cat(parts).cpu() for site, parts in self.waiting.items()}
        self.waiting.clear()
        return joined
