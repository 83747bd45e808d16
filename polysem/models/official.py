"""From the weights of official B-cos v2 vision transformers to ours, for `load`.

The official networks (arXiv 2301.08669, package ``bcos``) are SimpleViTs: fixed positions are
added to the tokens, which is ``positions="sincos"`` here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from polysem.errors import CheckpointError, SpecError, did_you_mean

__all__ = ["OFFICIAL_VITS", "official_vit", "official_vit_key"]

_SIZES = {"ti": "tiny", "s": "small", "b": "base", "l": "base"}
_LARGE = {"embed_dim": 1024, "num_heads": 16}

#: Configuration names of the official networks, without ``bcos_``.
OFFICIAL_VITS = tuple(
    f"{stem}_{size}_{grid}"
    for stem, grid in (("simple_vit", "patch16_224"), ("vitc", "patch1_14"))
    for size in _SIZES
)

_RULES = (
    (r"to_patch_embedding\.linear\.", r"patch_embed.proj.linear."),
    (r"transformer\.encoder_(\d+)\.attn\.norm\.", r"blocks.\1.norm1."),
    (r"transformer\.encoder_(\d+)\.attn\.to_qkv\.", r"blocks.\1.attn.qkv."),
    (r"transformer\.encoder_(\d+)\.attn\.to_out\.", r"blocks.\1.attn.proj."),
    (r"transformer\.encoder_(\d+)\.ff\.net\.norm\.", r"blocks.\1.norm2."),
    (r"transformer\.encoder_(\d+)\.ff\.net\.linear(\d)\.", r"blocks.\1.mlp.fc\2."),
    (r"linear_head\.norm\.", r"fc_norm."),
)


def official_vit_key(key: str) -> str:
    """Return our name for one parameter of an official vision transformer.

    Parameters
    ----------
    key : str
        With or without the ``0.`` of the container that adds the logit bias.

    Raises
    ------
    CheckpointError
        If no official network has such a parameter.

    Examples
    --------
    >>> official_vit_key("0.transformer.encoder_3.attn.to_out.linear.weight")
    'blocks.3.attn.proj.weight'
    """
    name = key.removeprefix("0.")
    # A B-cos layer keeps its weight in a plain layer of its own, a standard layer is one.
    plain = re.sub(r"(linear\d?|to_out|conv_stem\.\d+)\.linear\.weight$", r"\1.weight", name)
    if stem := re.fullmatch(r"to_patch_embedding\.conv_stem\.(\d+)\.(weight|bias)", plain):
        stage, part = divmod(int(stem[1]), 3)  # convolution, norm, activation
        if part < 2:
            return f"patch_embed.proj.stem.{stage}.{('conv', 'norm')[part]}.{stem[2]}"
    if plain.startswith("linear_head.linear."):
        head = "head." if plain == name else "head.linear."
        return plain.replace("linear_head.linear.", head)
    for pattern, ours in _RULES:
        renamed, hits = re.subn(f"^{pattern}(?=weight$|bias$)", ours, plain)
        if hits:
            return renamed
    raise CheckpointError(f"no official B-cos vision transformer has a parameter {key!r}")


def official_vit(
    name: str, tensors: Mapping[str, Tensor]
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Translate the weights of an official vision transformer, B-cos or standard.

    Parameters
    ----------
    name : str
        Its name in the ``bcos`` package, such as ``vitc_ti_patch1_14``, with ``bcos_`` or
        ``standard_`` before it or not: the weights tell.
    tensors : mapping of str to Tensor
        The official state dict.

    Returns
    -------
    arch, model_args, state_dict
        For ``timm.create_model(arch, **model_args).load_state_dict(state_dict)``. Standard ones
        have no biases in attention, so that those are zeros here.

    Raises
    ------
    SpecError
        If there is no network of that name.
    CheckpointError
        If the weights have another key layout or are not of the kind that the name says.

    Notes
    -----
    The official "l" networks (width 1024, depth 14) are ``base`` models with other sizes here;
    they are not timm's large (depth 24).
    """
    said, stem, size = _parsed(name)
    state_dict = {official_vit_key(key): value for key, value in tensors.items()}
    kind = _kind(state_dict)
    if said not in ("", kind):
        raise CheckpointError(f"the name {name!r} says {said}, but the weights are {kind}")
    projection = state_dict["blocks.0.attn.proj.weight"]
    max_out = projection.shape[0] // projection.shape[1]
    head = state_dict["head.linear.weight" if kind == "bcos" else "head.weight"]
    model_args: dict[str, Any] = {
        "num_classes": head.shape[0] // max_out,
        "positions": "sincos",
    }
    if size == "l":
        model_args |= {**_LARGE, "depth": 13 if stem == "vitc" else 14}
    if kind == "bcos":
        model_args["max_out"] = max_out
    else:
        state_dict |= dict(_zero_biases(state_dict))
    prefix, suffix = ("bcos_", "patch16_224") if kind == "bcos" else ("", "patch16_gap_224")
    if (kind, stem, _SIZES[size]) == ("standard", "vit", "base"):
        suffix = "patch16_relpos_gap_224"  # see polysem.models.vit
    return f"{prefix}{stem}_{_SIZES[size]}_{suffix}", model_args, state_dict


def _parsed(name: str) -> tuple[str, str, str]:
    """Return the kind that a name says ("" if it says none), the stem and the size."""
    kind = next((kind for kind in ("bcos", "standard") if name.startswith(f"{kind}_")), "")
    network = name.removeprefix(f"{kind}_")
    if network not in OFFICIAL_VITS:
        raise SpecError(
            f"{name!r} is no official B-cos vision transformer"
            f"{did_you_mean(network, OFFICIAL_VITS)}; there are {', '.join(OFFICIAL_VITS)}"
        )
    family, _, rest = network.partition("vit")
    stem = "vit" if family else "vitc"
    return kind, stem, rest.split("_")[1]


def _kind(state_dict: Mapping[str, Tensor]) -> str:
    for kind, key in (("bcos", "head.linear.weight"), ("standard", "head.weight")):
        if key in state_dict and "blocks.0.attn.proj.weight" in state_dict:
            return kind
    raise CheckpointError(
        "these are no weights of an official B-cos vision transformer: "
        "'linear_head.linear…weight' or 'transformer.encoder_0.attn.to_out…weight' is missing"
    )


def _zero_biases(state_dict: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, weight in state_dict.items():
        if key.endswith(("attn.qkv.weight", "attn.proj.weight")):
            yield key.removesuffix("weight") + "bias", weight.new_zeros(len(weight))
