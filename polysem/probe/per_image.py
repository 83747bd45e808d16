"""What a probe keeps of every single image, held back until there is enough to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

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

    def take(self) -> dict[str, list[Any]]:
        """Return the columns of what is waiting, and forget it."""
        columns = {
            name: list(chain.from_iterable(rows[name] for rows in self.waiting))
            for name in self.waiting[0]
        }
        self.waiting.clear()
        return columns


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
