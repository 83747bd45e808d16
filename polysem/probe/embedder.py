"""How a probe comes by the embedding of each image: from the model itself or another encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polysem.errors import NonFiniteError, SpecError
from polysem.models.encoder import Encoder, pooled_fingerprint
from polysem.models.hooked import HookedVisionModel
from polysem.models.load import LoadedModel
from polysem.models.transform import Transform
from polysem.probe.batches import Decoded
from polysem.store.run import Run

__all__ = ["Embedder", "KeptEmbeddings", "require_directions"]

#: Images whose kept embeddings are read at once.
_BLOCK = 4096


class KeptEmbeddings:
    """Embeddings that a run holds, for another model that is probed on the same images.

    Parameters
    ----------
    run : Run
        With embeddings.
    spec : str
        What to call their encoder: ``model`` means another one in each run.

    Attributes
    ----------
    spec, fingerprint : str
        The encoder, as of an `Encoder`.
    """

    def __init__(self, run: Run, spec: str) -> None:
        self._embeddings = run.embeddings
        self._images = run.images["image"].to_numpy()
        self._block, self._first = np.zeros((0, self._embeddings.shape[1]), np.float32), 0
        self.spec, self.fingerprint = spec, str(self._embeddings.attrs["fingerprint"])

    def of(self, indices: Sequence[int]) -> Tensor:
        """Return the embeddings [image, dim] of images by their ascending numbers in the data."""
        rows = np.searchsorted(self._images, np.asarray(indices))
        if rows[0] < self._first or rows[-1] >= self._first + len(self._block):
            self._first = int(rows[0])
            some = slice(self._first, max(self._first + _BLOCK, int(rows[-1]) + 1))
            self._block = self._embeddings[some].to_numpy()
        return torch.from_numpy(self._block[rows - self._first])


class Embedder:
    """Give the embeddings of one batch after another.

    Parameters
    ----------
    encoder : Encoder, KeptEmbeddings or None
        None takes the pooled features of the probed model, which its own pass computes anyway.
    loaded : LoadedModel
        The model that is probed.
    hooked : HookedVisionModel
        The same with hooks.

    Attributes
    ----------
    attrs : dict
        Name of the encoder and its fingerprint.
    other_transform : Transform or None
        How the encoder wants images, if otherwise than the model.

    Raises
    ------
    SpecError
        If the model has no pooled features.
    """

    def __init__(
        self,
        encoder: Encoder | KeptEmbeddings | None,
        loaded: LoadedModel,
        hooked: HookedVisionModel,
    ) -> None:
        self.encoder = encoder
        self._pooled: Tensor | None = None
        self.other_transform: Transform | None = None
        if encoder is None:
            if "hook_pooled" not in hooked.hook_dict:
                raise SpecError(
                    f"{loaded.name} has no pooled features to embed images by; name an encoder "
                    "with --embed"
                )
            self.attrs = {"encoder": "model", "fingerprint": pooled_fingerprint(loaded)}
            return
        self.attrs = {"encoder": encoder.spec, "fingerprint": encoder.fingerprint}
        if isinstance(encoder, Encoder) and not _same_pixels(encoder.transform, loaded.transform):
            self.other_transform = encoder.transform

    def hooks(self) -> list[tuple[str, Callable[..., None]]]:
        """Return the hooks to set on the model."""
        return [("hook_pooled", self._keep)] if self.encoder is None else []

    def embed(self, decoded: Decoded, pixels: Tensor) -> Tensor:
        """Return the embeddings [image, dim], float32 of length 1, after the model's pass.

        Parameters
        ----------
        decoded : Decoded
            The batch.
        pixels : Tensor
            Its pixels as the model took them, on the device.
        """
        if self.encoder is None:
            assert self._pooled is not None
            pooled, self._pooled = self._pooled, None
            return torch.nn.functional.normalize(pooled.float(), dim=1)
        if isinstance(self.encoder, KeptEmbeddings):
            return self.encoder.of(decoded.indices).to(pixels.device, non_blocking=True)
        if decoded.other_pixels is not None:
            pixels = decoded.other_pixels.to(pixels.device, non_blocking=True)
        with torch.autocast(pixels.device.type, enabled=False):
            return self.encoder(pixels)

    def _keep(self, pooled: Tensor, *, hook: Any) -> None:
        self._pooled = pooled


def require_directions(embeddings: np.ndarray, keys: Sequence[str], encoder: str) -> None:
    """Refuse embeddings [image, dim] without a direction: not finite, or of length 0.

    Raises
    ------
    NonFiniteError
        Naming the encoder and the first such image.
    """
    length = np.linalg.norm(embeddings, axis=1)
    bad = ~(length > 0)
    if bad.any():
        raise NonFiniteError(
            f"the encoder {encoder} gives no direction for image {keys[int(bad.argmax())]!r} "
            f"({int(bad.sum())} of {len(bad)} images of the batch): its features are all 0 or not "
            "finite; take another encoder"
        )


def _same_pixels(a: Transform, b: Transform) -> bool:
    return (a.size, a.crop_pct, a.interpolation) == (b.size, b.crop_pct, b.interpolation)
