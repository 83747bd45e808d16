"""From logits and labels to one number to minimise: cross-entropy, or B-cos models' clamped BCE."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor
from torch.nn import functional as F

__all__ = ["LOSSES", "Loss", "bce", "confidence", "cross_entropy"]


class Loss(Protocol):
    """A mean loss over a batch; `training` tells a loss that differs at test time which it is."""

    def __call__(self, logits: Tensor, labels: Tensor, *, training: bool) -> Tensor: ...  # noqa: D102


def cross_entropy(logits: Tensor, labels: Tensor, *, training: bool) -> Tensor:
    """Mean over images of -log softmax(logits)[label]; the same in training and test.

    Parameters
    ----------
    logits : Tensor [image, class]
    labels : int Tensor [image], or float Tensor [image, class]
        Of mixed images: the share of each class.
    """
    del training
    return F.cross_entropy(logits.float(), labels)


def bce(logits: Tensor, labels: Tensor, *, training: bool) -> Tensor:
    """Mean over images and classes of the binary cross-entropy of σ(logit) and its target.

    The target is 1 for the image's class. For the other C−1 classes it is 1/C in training, so that
    a B-cos model need not push their logits without end, and 0 in test.

    Parameters
    ----------
    logits : Tensor [image, class]
    labels : int Tensor [image], or float Tensor [image, class]
        Of mixed images: the share of each class, which is clamped in the same way.

    References
    ----------
    B-cos Networks v2 (arXiv 2306.10898); targets clamped from below as in its released code.
    """
    n_classes = logits.shape[1]
    target = labels if labels.is_floating_point() else F.one_hot(labels, n_classes)
    target = target.to(logits.device).float()
    if training:
        target = target.clamp(min=1 / n_classes)
    return F.binary_cross_entropy_with_logits(logits.float(), target)


LOSSES: dict[Literal["cross_entropy", "bce"], Loss] = {"cross_entropy": cross_entropy, "bce": bce}


def confidence(logits: Tensor, loss: Loss) -> Tensor:
    """Return the probability [image] that a model gives to the class it chooses.

    Of a model trained with `bce` each logit is a yes or no of its own, so this is σ(logit); of
    all others it is a share of softmax.
    """
    wide = logits.float()
    given = wide.sigmoid() if loss is bce else wide.softmax(1)
    return given.amax(1)
