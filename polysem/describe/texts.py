"""What a vision-language model makes of a vocabulary, computed once and kept for later runs."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from polysem.describe.vocabulary import Vocabulary
from polysem.models.clip import Clip

__all__ = ["TEMPLATES", "cache_folder", "embed_concepts", "embed_vocabulary"]

#: Sentences that a concept is put into; its embedding is their mean.
TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture of a {}",
    "a close-up of {}",
    "an image that shows {}",
)


def embed_vocabulary(
    clip: Clip, vocabulary: Vocabulary, templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """Return one embedding a concept [concept, dim] of length 1, from the cache if it is there.

    Vocabulary, text tower and templates decide what is the same. A cache that cannot be read or
    written costs time, nothing else.
    """
    said = json.dumps([vocabulary.fingerprint, clip.text_digest, list(templates)])
    name = f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.safetensors"
    file = cache_folder() / "texts" / name
    with suppress(OSError, SafetensorError, KeyError):
        kept: Tensor = load_file(file)["embedding"]
        if len(kept) == len(vocabulary):
            return kept
    found = embed_concepts(clip, vocabulary.concepts, templates)
    part = file.with_name(f".{name}.partial-{uuid.uuid4().hex[:8]}")
    with suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"embedding": found.contiguous()}, part)
        os.replace(part, file)
    with suppress(OSError):
        part.unlink(missing_ok=True)
    return found


def embed_concepts(clip: Clip, concepts: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return one embedding a concept [concept, dim]: the mean over templates, of length 1."""
    total = torch.stack([
        clip.embed_texts([template.replace("{}", concept) for concept in concepts])
        for template in templates
    ]).mean(0)  # fmt: skip
    return torch.nn.functional.normalize(total, dim=1)


def cache_folder() -> Path:
    """Return where results that are dear are kept: POLYSEM_CACHE, or the user's cache folder."""
    if own := os.environ.get("POLYSEM_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "polysem"
