"""Turn a Hugging Face ViT folder into timm's `VisionTransformer`, for `load`.

One architecture is hooked, probed and explained in polysem: timm's. A folder saved by
``ViTForImageClassification.save_pretrained`` is read by transformers (safetensors, or pickles
with ``weights_only=True``; no remote code) and its tensors are renamed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from polysem.errors import CheckpointError
from polysem.models.transform import Transform
from polysem.models.weights import fit, read_tensors

__all__ = ["load_vit_folder"]

_ARCHITECTURE = "ViTForImageClassification"

# transformers' activations by the names that timm has for the same functions
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

#: Parameters that need no weights behind them, and what a block counts for at least.
_FREE, _PER_BLOCK = 1 << 26, 100_000

_SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_labels")

_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}

# Names in transformers' modules on the left (5.x has renamed them once), timm's on the right.
_RENAMES = (
    (r"^vit\.embeddings\.cls_token$", "cls_token"),
    (r"^vit\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^vit\.layernorm\.", "norm."),
    (r"^classifier\.", "head."),
    (r"^vit\.(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)


def load_vit_folder(
    folder: Path,
) -> tuple[nn.Module, Transform, tuple[str, ...] | None, Callable[[], nn.Module]]:
    """Return the model of a Hugging Face ViT folder as timm's, its transform and class names.

    The last of the four builds the same architecture with newly drawn weights.

    The image processor of transformers squeezes an image to a square; `Transform` resizes the
    shorter side and crops the centre. The two agree on square images.

    Raises
    ------
    CheckpointError
        If the folder is damaged, incomplete, or holds another architecture.
    """
    config = _read_json(folder / "config.json")
    named = config.get("architectures") or [config.get("model_type") or "nothing that it names"]
    found = named[0] if isinstance(named, list) else named
    if found != _ARCHITECTURE:
        raise CheckpointError(
            f"{folder} holds {found}; of Hugging Face folders only {_ARCHITECTURE} can be read"
        )
    _require_modest(folder, config)
    if not any(folder.glob("*.safetensors")):
        for path in sorted(folder.glob("*.bin")):
            read_tensors(path)  # for our words: those of torch advise to run what is in the file
    from transformers import ViTForImageClassification

    try:
        with _quiet_transformers():
            peer, report = ViTForImageClassification.from_pretrained(
                folder,
                local_files_only=True,
                weights_only=True,
                ignore_mismatched_sizes=True,  # reported below, in our words
                output_loading_info=True,
                dtype=torch.float32,
            )
    except Exception as error:  # transformers raises whatever its parsers do
        text = " ".join(str(error).split())
        raise CheckpointError(f"{folder} cannot be loaded by transformers: {text[:200]}") from None
    _require_complete(folder, report)
    build = partial(_timm_vit, peer.config, folder)
    try:
        model = build()
        transform, classes = _transform(folder, peer.config), _classes(peer.config)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a constructor makes of a wrong size or type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{folder}/config.json or preprocessor_config.json cannot be understood ({reason})"
        ) from None
    fit(model, _renamed(peer.state_dict()), source=str(folder), name="timm's VisionTransformer")
    return model, transform, classes, build


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return content


def _require_modest(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a network of more parameters than its weights have bytes, before one is built."""
    held = sum(
        f.stat().st_size for kind in ("safetensors", "bin") for f in folder.glob(f"*.{kind}")
    )
    sizes = [config.get(key, 0) for key in _SIZES]
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise CheckpointError(f"{folder}/config.json: {', '.join(_SIZES)} are {sizes}, not sizes")
    width, depth, hidden, n_classes = sizes
    # a block costs time even where it is narrow
    per_block = 4 * width * width + 2 * width * hidden + _PER_BLOCK
    if depth * per_block + n_classes * width > held + _FREE:
        raise CheckpointError(
            f"{folder}/config.json says {', '.join(_SIZES)} = {sizes}, a network of more "
            f"parameters than its {held:,} bytes of weights"
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' loading report and progress bar out of the caller's terminal."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _require_complete(folder: Path, report: Mapping[str, Any]) -> None:
    # The pooler of ViTModel is saved with some classifiers that do not use it.
    unexpected = [k for k in report["unexpected_keys"] if not k.startswith("vit.pooler.")]
    mismatched = [
        f"{key} {list(held)} instead of {list(wanted)}"
        for key, held, wanted in report["mismatched_keys"]
    ]
    for kind, keys in (
        ("wrong shape", mismatched),
        ("missing", list(report["missing_keys"])),
        ("unexpected", unexpected),
    ):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise CheckpointError(
                f"the weights in {folder} do not fit its config.json; "
                f"{kind}: {', '.join(sorted(keys)[:3])}{more}"
            )


def _timm_vit(config: Any, folder: Path) -> VisionTransformer:
    if config.hidden_act not in _ACTIVATIONS:
        raise CheckpointError(
            f"{folder} uses the activation {config.hidden_act!r}; known: {', '.join(_ACTIVATIONS)}"
        )
    if getattr(config, "head_dim", None) not in (
        None,
        config.hidden_size // config.num_attention_heads,
    ):
        raise CheckpointError(f"{folder} has heads of another width than hidden_size / heads")
    return VisionTransformer(
        img_size=_pair(config.image_size),
        patch_size=_pair(config.patch_size),
        in_chans=config.num_channels,
        num_classes=config.num_labels,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        # timm rounds hidden_size × ratio down: aim at the middle of the right integer
        mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,
        qkv_bias=config.qkv_bias,
        norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
        act_layer=_ACTIVATIONS[config.hidden_act],
    )


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return transformers' tensors under timm's names, q, k and v stacked as one."""
    renamed = {}
    for key, value in tensors.items():
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    for key in [k for k in renamed if ".attn.q." in k]:
        parts = [renamed.pop(key.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        renamed[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return renamed


def _transform(folder: Path, config: Any) -> Transform:
    path = folder / "preprocessor_config.json"
    said = _read_json(path) if path.is_file() else {}
    normalise = said.get("do_normalize", True)
    try:
        scaled = _processor_size(said.get("size", config.image_size))
        cropped = _processor_size(said["crop_size"]) if said.get("do_center_crop") else scaled
        return Transform(
            size=_pair(config.image_size),  # the processor may still say its default, 224
            crop_pct=min(cropped[0] / scaled[0], 1.0),
            interpolation=_INTERPOLATIONS[said.get("resample", 2)],
            mean=tuple(said.get("image_mean", (0.5,) * 3)) if normalise else (0.0,) * 3,
            std=tuple(said.get("image_std", (0.5,) * 3)) if normalise else (1.0,) * 3,
            inverse=False,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} cannot be understood ({error})") from None


def _processor_size(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        return (edge, edge) if edge else (size["height"], size["width"])
    return _pair(size)


def _classes(config: Any) -> tuple[str, ...] | None:
    names = tuple(config.id2label[i] for i in range(config.num_labels))
    unnamed = tuple(f"LABEL_{i}" for i in range(config.num_labels))  # transformers' filler
    return None if names == unnamed else names
