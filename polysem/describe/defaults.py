"""Which CLIP and which words fit a run where none are named, and which do not fit it at all."""

from __future__ import annotations

from polysem.data.shipped import shipped_file
from polysem.models.clip import Clip

__all__ = ["CLIP_OF_PHOTOGRAPHS", "default_clip", "default_vocabulary", "misfit"]

#: What open_clip downloads for anything but drawn images.
CLIP_OF_PHOTOGRAPHS = "ViT-B-32:laion2b_s34b_b79k"


def default_clip(data: str) -> str:
    """Return what `load_clip` takes for images of this spec.

    The model that ships with polysem for drawn images, which needs no network; for all others, one
    that open_clip downloads.

    Raises
    ------
    MissingError
        If polysem was installed without the folder that ships with it.

    >>> default_clip("cifar10:test")
    'ViT-B-32:laion2b_s34b_b79k'
    """
    return str(shipped_file("models", "shapes_clip")) if _drawn(data) else CLIP_OF_PHOTOGRAPHS


def default_vocabulary(data: str) -> str:
    """Return the name of the list that fits images of this spec: shapes, or common."""
    return "shapes" if _drawn(data) else "common"


def misfit(clip: Clip, data: str) -> str | None:
    """Return a sentence if the model knows nothing but drawings and the images are none."""
    if clip.trained_on is None or not _drawn(clip.trained_on) or _drawn(data):
        return None
    return (
        f"{clip.spec} was trained on drawn shapes alone ({clip.trained_on}) and knows nothing of "
        f"{data}: names that it gives mean nothing; take one such as {CLIP_OF_PHOTOGRAPHS}"
    )


def _drawn(spec: str) -> bool:
    return spec.partition("?")[0].partition(":")[0] == "shapes"
