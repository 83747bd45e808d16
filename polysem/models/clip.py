"""Vision-language models as open_clip keeps them: the one place that loads them.

An image tower and a text tower that embed pictures and words in one space. Weights come from a
file, from a folder in open_clip's own layout, or by download; nothing in them is ever run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polysem import _torchvision
from polysem.device import choose_device
from polysem.errors import CheckpointError, MissingError, SpecError, did_you_mean
from polysem.models.transform import Transform
from polysem.models.weights import fit, read_tensors, require_finite, state_digest

_torchvision.repair()

__all__ = ["CONFIG", "Clip", "load_clip", "open_clip_transform", "quiet_open_clip"]

CONFIG = "open_clip_config.json"
"""What open_clip reads in a folder, beside the weights."""

_SCHEMES = ("hf-hub:", "local-dir:")
_FORMS = (
    "ARCH:TAG (weights that open_clip downloads), ARCH:FILE, hf-hub:ORG/NAME, or a folder with "
    "open_clip_config.json"
)
_TEXTS_AT_A_TIME = 256


@dataclass(frozen=True)
class Clip:
    """Two towers with one space.

    Attributes
    ----------
    spec : str
        What was asked for.
    model : nn.Module
        open_clip's, in evaluation mode, on the device asked for.
    transform : Transform
        From an image to what the image tower takes.
    digest : str
        SHA-256 of the image tower's weights.
    text_digest : str
        SHA-256 of everything else that texts go through.
    tokenizer : callable
        From texts to tokens.
    trained_on : str or None
        The data, where polysem trained it; None of all others, which know photographs.
    """

    spec: str
    model: Any
    transform: Transform
    digest: str
    text_digest: str
    tokenizer: Any
    trained_on: str | None = None

    def image_features(self, inputs: Tensor) -> Tensor:
        """Return features [image, dim] of what `transform` gives, normalised."""
        found = self.model.visual(inputs)
        return torch.as_tensor(found[0] if isinstance(found, tuple) else found)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings [text, dim], float32 of length 1, on the CPU."""
        device = next(self.model.parameters()).device
        parts = []
        for start in range(0, len(texts), _TEXTS_AT_A_TIME):
            tokens = self.tokenizer(list(texts[start : start + _TEXTS_AT_A_TIME])).to(device)
            parts.append(self.model.encode_text(tokens).float().cpu())
        return torch.nn.functional.normalize(torch.cat(parts), dim=1)


def load_clip(spec: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Clip:
    """Load a vision-language model; nothing in a weights file is ever run.

    Parameters
    ----------
    spec : str or path-like
        - ``ARCH:TAG``, as in ``ViT-B-32:laion2b_s34b_b79k``: weights that open_clip downloads;
        - ``ARCH:FILE``: weights in a file in open_clip's format, both towers;
        - ``hf-hub:ORG/NAME``: configuration and weights from the Hugging Face hub;
        - a folder with ``open_clip_config.json`` and weights.
    device : str or torch.device

    Raises
    ------
    SpecError
        If the spec or the architecture is not known, or no weights are named.
    MissingError
        If a file is not there, or a download fails.
    CheckpointError
        If the weights cannot be read safely, or do not fit.
    NonFiniteError
        If the weights hold NaN or infinity.
    """
    import open_clip

    text = os.fspath(spec)
    if Path(text).expanduser().is_dir():
        text = f"local-dir:{Path(text).expanduser()}"
    if text.startswith(_SCHEMES):
        name, weights = text, ""
    else:
        name, _, weights = text.removeprefix("open_clip:").partition(":")
        _check(name, weights)
    file = Path(weights).expanduser()
    from_file = bool(weights) and weights not in open_clip.list_pretrained_tags_by_model(name)
    place = choose_device(str(device))
    if text.startswith("local-dir:") and not _holds_weights(text.removeprefix("local-dir:")):
        raise CheckpointError(f"{spec} holds no weights: a .safetensors, .bin or .pth file")
    with quiet_open_clip():
        model = _create(name, None if from_file or not weights else weights, text)
        tokenizer = _tokenizer(name, text)
    if from_file:
        tensors, _ = read_tensors(file)
        fit(
            model, open_clip.convert.convert_state_dict(model, tensors), source=str(file), name=name
        )
    require_finite(model, source=text)
    state = model.state_dict()
    image = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    words = {k: v for k, v in state.items() if not k.startswith("visual.")}
    return Clip(
        spec=os.fspath(spec),
        model=model.eval().to(place),
        transform=open_clip_transform(model.visual.preprocess_cfg),
        digest=state_digest(image),
        text_digest=hashlib.sha256(f"{name} {state_digest(words)}".encode()).hexdigest(),
        tokenizer=tokenizer,
        trained_on=_trained_on(text.removeprefix("local-dir:")),
    )


def _check(name: str, weights: str) -> None:
    import open_clip

    if name not in open_clip.list_models():
        near = did_you_mean(name, open_clip.list_models())
        raise SpecError(f"open_clip has no model called {name!r}{near}; a CLIP model is {_FORMS}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not weights:
        shown = f"its tags are {', '.join(tags[:5])}" if tags else "it has no tags, name a file"
        raise SpecError(f"{name} needs weights: {name}:TAG or {name}:FILE; {shown}")
    if weights not in tags and not Path(weights).expanduser().is_file():
        near = did_you_mean(weights, tags) or f"; its tags are {', '.join(tags) or 'none'}"
        raise MissingError(
            f"there is no file {weights}, and {name} has no weights tagged {weights!r}{near}"
        )


def _holds_weights(folder: str) -> bool:
    return any(next(Path(folder).glob(f"*{end}"), None) for end in (".safetensors", ".bin", ".pth"))


def _trained_on(folder: str) -> str | None:
    """Return what data a folder's configuration names, if `polysem train` wrote it."""
    try:
        said = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        return str(said["polysem"]["trained_on"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _create(name: str, tag: str | None, spec: str) -> Any:
    import open_clip

    try:
        with torch.random.fork_rng(devices=[]):
            model = open_clip.create_model(name, pretrained=tag)
    except Exception as error:  # open_clip, the hub and their network layers raise many kinds
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        if name.startswith("local-dir:"):
            raise CheckpointError(
                f"{spec.removeprefix('local-dir:')} cannot be loaded: {reason}"
            ) from None
        arch = "ARCH" if name.startswith(_SCHEMES) else name
        raise MissingError(
            f"{spec} could not be loaded ({reason}); check the network, or download its weights "
            f"elsewhere and name the file: {arch}:FILE"
        ) from None
    return model


def _tokenizer(name: str, spec: str) -> Any:
    import open_clip

    try:
        return open_clip.get_tokenizer(name)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MissingError(f"the tokenizer of {spec} could not be loaded ({reason})") from None


def open_clip_transform(preprocess: dict[str, Any]) -> Transform:
    """Return open_clip's evaluation transform; what it would squash is cropped instead."""
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return Transform(
        size=(height, width),
        crop_pct=1.0,
        interpolation=preprocess["interpolation"],
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
    )


@contextmanager
def quiet_open_clip() -> Iterator[None]:
    """Hold back open_clip's remarks, which go to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)
