"""From a model and labelled images to what it is worth: test loss, accuracy and its uncertainty."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from polysem.errors import NonFiniteError
from polysem.models.transform import Transform
from polysem.processes import Processes
from polysem.train.calibration import expected_calibration_error
from polysem.train.images import ImageSet
from polysem.train.losses import Loss, confidence
from polysem.train.order import Part

__all__ = ["Evaluation", "autocast", "evaluate", "wilson_interval"]


@dataclass(frozen=True)
class Evaluation:
    """What a model reached on a set of images.

    Attributes
    ----------
    loss : float
        Mean over images, in the form that the loss has at test time.
    n_correct, n_images : int
    class_accuracy : float array [class]
        Share of each class's images that were recognised; NaN for a class without images.
    calibration_error : float
        By how much confidence misses accuracy, see `expected_calibration_error`.
    """

    loss: float
    n_correct: int
    n_images: int
    class_accuracy: npt.NDArray[np.float64]
    calibration_error: float

    @property
    def accuracy(self) -> float:
        """Share of images recognised, from 0 to 1 (best)."""
        return self.n_correct / self.n_images

    @property
    def balanced_accuracy(self) -> float:
        """Mean of `class_accuracy` over the classes that have images: 1 / classes by chance."""
        return float(np.nanmean(self.class_accuracy))

    def record(self) -> dict[str, float]:
        """Return what the log says of it."""
        return {
            "test_loss": self.loss,
            "test_accuracy": self.accuracy,
            "test_balanced_accuracy": self.balanced_accuracy,
            "test_calibration_error": self.calibration_error,
        }

    def metrics(self) -> dict[str, Any]:
        """Return what checkpoint and card say of it."""
        by_class = self.class_accuracy.tolist()
        return {
            **self.record(),
            "test_accuracy_95": list(wilson_interval(self.n_correct, self.n_images)),
            "test_images": self.n_images,
            "test_class_accuracy": [None if math.isnan(share) else share for share in by_class],
        }


def evaluate(
    model: nn.Module,
    images: ImageSet,
    transform: Transform,
    loss: Loss,
    *,
    batch_size: int = 256,
    precision: str = "fp32",
    group: Processes | None = None,
) -> Evaluation:
    """Test the model in eval mode and without gradients; its mode is put back afterwards.

    Parameters
    ----------
    model : nn.Module
    images : ImageSet
    transform : Transform
    loss : Loss
    batch_size : int
    precision : str
        ``fp32``, or ``bf16`` for autocast.
    group : Processes, optional
        Which share the images, and all learn the result.

    Raises
    ------
    NonFiniteError
        If the test loss is NaN or infinite.
    """
    was_training = model.training
    model.eval()
    try:
        logits = _logits(model, images, transform, batch_size, precision, group)
    finally:
        model.train(was_training)
    value = float(loss(logits, images.labels, training=False))
    if not np.isfinite(value):
        raise NonFiniteError(f"the test loss on {images.name} is {value}")
    right = (logits.argmax(1) == images.labels).cpu().numpy()
    sure = confidence(logits, loss).cpu().numpy()
    labels = images.labels.cpu().numpy()
    shown = np.bincount(labels, minlength=len(images.classes))
    hits = np.bincount(labels, weights=right, minlength=len(images.classes))
    return Evaluation(
        loss=value,
        n_correct=int(right.sum()),
        n_images=len(images),
        class_accuracy=np.divide(hits, shown, out=np.full(hits.shape, np.nan), where=shown > 0),
        calibration_error=expected_calibration_error(sure, right),
    )


@torch.inference_mode()
def _logits(
    model: nn.Module,
    images: ImageSet,
    transform: Transform,
    batch_size: int,
    precision: str,
    group: Processes | None,
) -> Tensor:
    """Return float32 logits [image, class], of all processes' shares."""
    count, number = (group.count, group.number) if group else (1, 0)
    share = -(-len(images) // count)
    mine = torch.arange(number * share, min((number + 1) * share, len(images)))
    parts = [Part(0, chosen, 0, len(chosen)) for chosen in mine.split(batch_size) if len(chosen)]
    logits = []
    with autocast(images.labels.device, precision):
        for batch in images.batches(parts):
            logits.append(model(transform.normalize(batch)).float())
    if group is None or count == 1:
        return torch.cat(logits)
    shape = (share, len(images.classes))
    padded = torch.zeros(shape, device=images.labels.device)  # the last share may be smaller
    if logits:
        padded[: len(mine)] = torch.cat(logits)
    return group.join(padded)[: len(images)]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context that the forward pass runs in: bfloat16 where it is safe, or nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def wilson_interval(n_correct: int, n_images: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of an accuracy.

    >>> low, high = wilson_interval(90, 100)
    >>> print(f"{low:.3f} {high:.3f}")
    0.826 0.945
    """
    interval = binomtest(n_correct, n_images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
