"""An encoder: the network that says how alike two images are, and the one place that loads it.

Scores and facets compare images by their embeddings. An encoder may be the model under study (its
pooled features), any timm backbone, or the image tower of a CLIP model as open_clip keeps it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polysem import _torchvision
from polysem.device import choose_device
from polysem.errors import CheckpointError, MissingError, SpecError, did_you_mean
from polysem.models.clip import Clip, open_clip_transform, quiet_open_clip
from polysem.models.load import LoadedModel, load_model
from polysem.models.transform import Transform
from polysem.models.weights import fit, read_tensors, require_finite, state_digest

_torchvision.repair()

__all__ = ["Encoder", "encoder_of", "image_encoder", "load_encoder", "pooled_fingerprint"]

_FORMS = (
    "model, timm:NAME, timm:NAME?pretrained, timm:NAME:FILE, open_clip:ARCH:FILE, "
    "open_clip:ARCH:PRETRAINED, or a checkpoint that load_model takes"
)


@dataclass(frozen=True)
class Encoder:
    """What turns images into embeddings.

    Attributes
    ----------
    spec : str
        What was asked for.
    fingerprint : str
        SHA-256 of weights and transform: equal fingerprints give equal embeddings.
    transform : Transform
        From an image to what `module` takes.
    module : nn.Module
        In evaluation mode, on the device asked for.
    features : callable
        From the input of `module` to features [image, dim].
    random : bool
        Whether the weights were drawn at random, so that likeness means little.
    """

    spec: str
    fingerprint: str
    transform: Transform
    module: nn.Module
    features: Callable[[Tensor], Tensor]
    random: bool = False

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Return embeddings [image, dim], float32 of length 1, of uint8 pixels.

        Parameters
        ----------
        pixels : Tensor
            What `transform` gives, stacked to [image, channel, y, x], where `module` is.
        """
        features = self.features(self.transform.normalize(pixels)).float()
        return nn.functional.normalize(features.flatten(1), dim=1)


def load_encoder(spec: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Encoder:
    """Load an encoder; nothing in a weights file is ever run.

    Parameters
    ----------
    spec : str or path-like
        - ``timm:NAME?pretrained`` with timm's weights, ``timm:NAME:FILE`` with those in a file,
          ``timm:NAME`` with random ones, always the same;
        - ``open_clip:ARCH:FILE`` with the image tower in a file in open_clip's format (``.pt``,
          ``.bin`` or ``.safetensors``; the text tower is not needed), ``open_clip:ARCH:TAG`` with
          weights that open_clip downloads, ``open_clip:ARCH`` with random ones;
        - anything else that `load_model` takes: its pooled features, before the classifier.
    device : str or torch.device
        Where the encoder goes.

    Raises
    ------
    SpecError
        If the spec or the architecture is not known.
    MissingError
        If a file is not there, or a download fails.
    CheckpointError
        If the weights cannot be read safely, or do not fit.
    NonFiniteError
        If the weights hold NaN or infinity.
    """
    text = os.fspath(spec)
    form, _, name = text.partition(":")
    if text == "model":
        raise SpecError("the encoder 'model' is the model of a run: it needs one to be named")
    if form == "open_clip":
        return _from_open_clip(text, *name.partition(":")[::2], device=device)
    weights = None
    if form == "timm" and ":" in name:
        name, _, weights = name.partition(":")
        text = f"timm:{name}"
    try:
        with _same_random_weights():
            loaded = load_model(text, weights=weights, device=device)
    except SpecError as error:
        if form in ("timm", "hf-hub", "bcos"):
            raise
        raise SpecError(f"no encoder {text!r}: an encoder is {_FORMS} ({error})") from None
    random = form == "timm" and weights is None and "?" not in text
    return encoder_of(loaded, spec=os.fspath(spec), random=random)


def encoder_of(loaded: LoadedModel, *, spec: str = "model", random: bool = False) -> Encoder:
    """Return the encoder that a model is by its pooled features, which its classifier reads.

    Raises
    ------
    SpecError
        If the model has no such features.
    """
    model: Any = loaded.model
    if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        raise SpecError(f"{loaded.name} has no pooled features to embed images by")

    def features(inputs: Tensor) -> Tensor:
        found = model.forward_head(model.forward_features(inputs), pre_logits=True)
        if found.ndim != 2:
            raise SpecError(
                f"{loaded.name} gives features of shape {tuple(found.shape)}, not one vector an "
                "image: it is built without pooling"
            )
        return torch.as_tensor(found)

    fingerprint = pooled_fingerprint(loaded)
    return Encoder(spec, fingerprint, loaded.transform, model.eval(), features, random)


def image_encoder(clip: Clip) -> Encoder:
    """Return the encoder that the image tower of a vision-language model is."""
    fingerprint = _fingerprint(clip.digest, clip.transform)
    return Encoder(clip.spec, fingerprint, clip.transform, clip.model, clip.image_features)


def pooled_fingerprint(loaded: LoadedModel) -> str:
    """Return the fingerprint of a model's pooled features as embeddings."""
    return _fingerprint(loaded.sha256, loaded.transform)


def _fingerprint(digest: str, transform: Transform) -> str:
    text = json.dumps([digest, transform.to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _from_open_clip(spec: str, arch: str, weights: str, *, device: str | torch.device) -> Encoder:
    import open_clip

    if arch not in open_clip.list_models():
        near = did_you_mean(arch, open_clip.list_models())
        raise SpecError(f"open_clip has no model called {arch!r}{near}")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    place = choose_device(str(device))
    file = Path(os.path.expanduser(weights))
    if weights and weights not in tags and not file.is_file():
        near = did_you_mean(weights, tags) or f"; it has {', '.join(tags) or 'none'}"
        raise MissingError(
            f"there is no file {file}, and {arch} has no pretrained weights tagged "
            f"{weights!r}{near}"
        )
    with quiet_open_clip(), _same_random_weights():
        tag = weights if weights in tags else None
        try:
            model = open_clip.create_model(arch, pretrained=tag)
        except Exception as error:  # open_clip, the hub and their network layers raise many kinds
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise MissingError(
                f"{spec} could not be loaded ({reason}); check the network, or name a weights "
                f"file: open_clip:{arch}:FILE"
            ) from None
    if weights and tag is None:
        _fit_image_tower(model, file, arch)
    tower = model.visual
    require_finite(tower, source=spec)
    transform = open_clip_transform(tower.preprocess_cfg)
    digest = state_digest(tower.state_dict())
    tower = tower.eval().to(place)

    def features(inputs: Tensor) -> Tensor:
        found = tower(inputs)
        return torch.as_tensor(found[0] if isinstance(found, tuple) else found)

    return Encoder(spec, _fingerprint(digest, transform), transform, tower, features, not weights)


def _fit_image_tower(model: Any, file: Path, arch: str) -> None:
    """Fill the image tower from a file that may hold the text tower too, or weights of others."""
    from open_clip.convert import convert_state_dict

    tensors, _ = read_tensors(file)
    tensors = convert_state_dict(model, tensors)
    image = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
    if not image:
        raise CheckpointError(f"{file} holds no image tower: none of its names begins with visual.")
    fit(model.visual, image, source=str(file), name=f"the image tower of {arch}")


@contextmanager
def _same_random_weights() -> Iterator[None]:
    """Draw the same weights every time, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
