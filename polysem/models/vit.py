"""Vision transformers, B-cos and standard: one architecture, timm's, with its layers injected.

A B-cos model and its standard twin differ in their layers and in nothing else: same depth,
widths, patches, positions, pooling and initial draws. All are average-pooled and have no class
token. They are registered with timm under names such as ``bcos_vitc_tiny_patch4_32`` and
``vitc_tiny_patch4_gap_32`` (timm's word for no class token); ``vitc`` starts with a stem of
convolutions instead of patches and has one block less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import timm.models.vision_transformer as timm_vit
from timm.models import (
    build_model_with_cfg,
    checkpoint,
    generate_default_cfgs,
    register_model,
)
from torch import Tensor, nn

from polysem.errors import SpecError, did_you_mean
from polysem.models.attention import Kept, attention_layer
from polysem.models.dropout import PatchDropout, check_drop_head, drop_channels
from polysem.models.embed import PatchLinearEmbed, SincosPositions
from polysem.models.kinds import choose_mixer
from polysem.models.lipsformer import PostNormBlock, spectral_init_
from polysem.models.mixers import Softmax
from polysem.models.norms import CenterNorm
from polysem.models.official import official_vit
from polysem.models.twins import STANDARD, Layers, bcos_layers
from polysem.models.vit_variants import VARIANTS, variant_args, variant_cfg, variant_name

__all__ = ["VisionTransformer", "official_vit"]

Positions = Literal["attention", "sincos", "learn", "none"]


class VisionTransformer(timm_vit.VisionTransformer):  # type: ignore[misc]
    """timm's vision transformer, average-pooled and without class token, of the given layers.

    Takes images of other sizes than it was built for; with attention positions these must be
    square, and offsets beyond the trained grid count as the farthest one trained.

    Parameters
    ----------
    layers : Layers
        :data:`~polysem.models.twins.STANDARD` or :func:`~polysem.models.twins.bcos_layers`.
    img_size, patch_size : int or (int, int)
        In pixels; the image must divide into patches.
    positions : {"attention", "sincos", "learn", "none"}
        In the attention logits (:class:`~polysem.models.positions.PositionBias`); added to the
        tokens, fixed (:func:`~polysem.models.embed.sincos_positions`) or learned (timm's); or
        nowhere. Added positions are a bias, which ``Σ W(x) x`` of a B-cos model misses.
    stem : sequence of int
        Widths of :func:`~polysem.models.embed.conv_stem`; empty for patches.
    attention : str or mapping
        How tokens attend to each other: a kind in :data:`~polysem.models.kinds.MIXERS`, or a
        mapping with its ``kind`` and its options.
    drop_head : "half" or float, optional
        Leave out half of the heads of each image while training, or each head at this rate
        (:class:`~polysem.models.dropout.DropHead`).
    feat_scale : bool
        Whether :class:`~polysem.models.attn_scale.FeatScale` follows each attention.
    spatial_drop_rate : float
        See :func:`~polysem.models.dropout.drop_channels`.
    patch_drop_rate : float or (float, float)
        See :class:`~polysem.models.dropout.PatchDropout`.
    center_norm : bool
        Norms are :class:`~polysem.models.norms.CenterNorm` instead of layer norms.
    post_norm : bool
        Blocks are :class:`~polysem.models.lipsformer.PostNormBlock`: norms after the sums.
    weighted_residual : bool
        What a branch adds is weighted by learned numbers (timm's LayerScale, `init_values`), at
        first 1 / depth.
    spectral_init : bool
        Weights start with spectral norm 1 (:func:`~polysem.models.lipsformer.spectral_init_`).
    weight_init
        timm's; by default each layer keeps its own torch initialisation, as in the official code.
    **options
        timm's: in_chans, num_classes, embed_dim, depth, num_heads, mlp_ratio, drop rates, ….

    Raises
    ------
    SpecError
        If sizes do not fit together, or `positions` is unknown or does not go with an option.
    """

    spectral: bool = False  # so it is while timm builds the model, before there is our head

    def __init__(
        self,
        *,
        layers: Layers,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        positions: Positions = "attention",
        stem: Sequence[int] = (),
        attention: str | Mapping[str, Any] = "softmax",
        drop_head: float | Literal["half"] | None = None,
        feat_scale: bool = False,
        spatial_drop_rate: float = 0.0,
        patch_drop_rate: float | Sequence[float] = 0.0,
        center_norm: bool = False,
        post_norm: bool = False,
        weighted_residual: bool = False,
        spectral_init: bool = False,
        weight_init: str = "reset",
        **options: Any,
    ) -> None:
        if positions not in get_args(Positions):
            hint = did_you_mean(positions, get_args(Positions))
            raise SpecError(f"unknown positions {positions!r}{hint}; known: {get_args(Positions)}")
        n_prefix_tokens = options.get("reg_tokens", 0)
        if n_prefix_tokens and positions != "learn":
            raise SpecError("register tokens (reg_tokens) need positions='learn'")
        if weighted_residual:
            options = {"init_values": 1 / options.get("depth", 12), **options}
        (height, width), (patch_y, patch_x) = _pair(img_size), _pair(patch_size)
        grid = (height // patch_y, width // patch_x)
        mixer_type, mixer_options = choose_mixer(attention)
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            class_token=False,
            pos_embed="learn" if positions == "learn" else "none",
            dynamic_img_size=True,
            qkv_bias=layers.biases,
            proj_bias=layers.biases,
            weight_init=weight_init,
            norm_layer=partial(CenterNorm, bias=layers.biases) if center_norm else layers.norm,
            act_layer=layers.act,
            mlp_layer=layers.mlp,
            attn_layer=attention_layer(
                layers.attention,  # type: ignore[arg-type]
                grid=grid if positions == "attention" else None,
                mixer_type=mixer_type,  # type: ignore[arg-type]
                mixer_options=(
                    ("grid", grid),
                    ("n_prefix_tokens", n_prefix_tokens),
                    *mixer_options.items(),
                ),
                has_feat_scale=bool(feat_scale),
                drop_head_rate=None if drop_head is None else check_drop_head(drop_head),
                **layers.attention_options,
            ),
            embed_layer=partial(
                PatchLinearEmbed,
                linear=layers.linear,
                conv=layers.conv,
                norm=layers.norm2d,
                act=layers.act,
                stem=tuple(stem),
            ),
            **{
                "global_pool": "avg",
                "block_fn": PostNormBlock if post_norm else timm_vit.Block,
                **options,
            },
        )
        self.positions, self.grid, self.make_head = positions, grid, layers.head
        self.sincos = SincosPositions() if positions == "sincos" else None
        self._renew_head()
        drop_channels(self, spatial_drop_rate)
        if patch_drop_rate:
            self.patch_drop = PatchDropout(patch_drop_rate, n_prefix_tokens)
        mixers = [module for module in self.modules() if isinstance(module, Softmax)]
        self.sees_grid = positions == "attention" or any(mixer.needs_grid for mixer in mixers)
        self._check_mixing(attention, leaves_out=bool(patch_drop_rate))
        self.spectral = spectral_init
        if spectral_init:
            spectral_init_(self)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Draw all weights anew, as timm does or with spectral norm 1."""
        super().init_weights(mode, needs_reset)
        if self.spectral:
            spectral_init_(self)

    def _check_mixing(self, attention: str | Mapping[str, Any], *, leaves_out: bool) -> None:
        """Refuse what this kind of attention cannot do."""
        for mixer in (module for module in self.modules() if isinstance(module, Softmax)):
            if mixer.needs_grid and leaves_out:
                raise SpecError(
                    f"attention {attention!r} needs every patch in its place: patch_drop_rate must "
                    "be 0"
                )
            if not mixer.takes_bias and self.positions == "attention":
                raise SpecError(
                    f"attention {attention!r} takes nothing in its logits: positions must be "
                    "'sincos', 'learn' or 'none'"
                )

    def _renew_head(self) -> None:
        if self.num_classes > 0:
            like = next(self.parameters())
            self.head = self.make_head(
                self.embed_dim, self.num_classes, device=like.device, dtype=like.dtype
            )
            self.head.train(self.training)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new head of the same kind on the model; of 0 classes, none."""
        super().reset_classifier(num_classes, global_pool)
        self._renew_head()

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that are positions."""
        tables = {
            name for name, _ in self.named_parameters() if name.endswith("position_bias.table")
        }
        return {"pos_embed", *tables}

    def forward_features(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Return the normalised tokens [image, token, d_model] of images; masks as in timm.

        Raises
        ------
        SpecError
            If there is a mask for tokens of which some are left out.
        """
        drops = self.training and isinstance(self.patch_drop, PatchDropout)
        if not drops or self.positions != "attention":
            features: Tensor = super().forward_features(x, attn_mask, is_causal)
            return features
        if attn_mask is not None or is_causal:
            raise SpecError("masks are for all tokens: patch_drop_rate must be 0")
        x = self._pos_embed(self.patch_embed(x))
        n_patches = x.shape[1]
        x, patches = self.patch_drop.keep(x)
        kept = None if patches is None else Kept(patches, n_patches)
        x = self.norm_pre(x)
        for block in self.blocks:
            run = partial(checkpoint, block) if self.grad_checkpointing else block
            x = run(x, kept)
        normalised: Tensor = self.norm(x)
        return normalised

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Turn patches [image, y, x, d_model] into tokens, with positions if these are added."""
        grid = (x.shape[1], x.shape[2])
        if self.sees_grid and grid != self.grid:
            self._check_grid(grid)
        if self.pos_embed is not None:
            tokens: Tensor = super()._pos_embed(x)
            return tokens
        tokens = x.flatten(1, 2)
        if self.sincos is not None:
            tokens = self.sincos(tokens, grid)
        dropped: Tensor = self.pos_drop(tokens)
        return dropped

    def _check_grid(self, grid: tuple[int, int]) -> None:
        """Refuse what attention, which only sees how many tokens there are, would mistake."""
        if grid[0] != grid[1] or math.prod(grid) == math.prod(self.grid):
            raise SpecError(
                f"images of {grid[0]} × {grid[1]} patches: with attention positions a model "
                f"trained on {self.grid[0]} × {self.grid[1]} takes those or other squares"
            )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


default_cfgs = generate_default_cfgs(
    {variant_name(*variant): variant_cfg(variant[0], variant[-1]) for variant in VARIANTS}
)


def _register(kind: str, stem: str, size: str, patch_size: int) -> None:
    """Add one model to timm's registry and, so that it pickles, to this module."""
    name = variant_name(kind, stem, size, patch_size)
    architecture = variant_args(kind, stem, size, patch_size)

    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        exponents = ("b", "max_out") if kind == "bcos" else ()
        chosen = {key: options.pop(key) for key in exponents if key in options}
        arguments = {**architecture, **options}
        overlay = arguments.pop("pretrained_cfg_overlay", None) or {}
        size = (arguments["in_chans"], *_pair(arguments["img_size"]))
        model: nn.Module = build_model_with_cfg(
            VisionTransformer,
            name,
            pretrained,
            pretrained_cfg_overlay={"input_size": size, **overlay},
            feature_cfg={"out_indices": 3, "feature_cls": "getter"},
            layers=bcos_layers(**chosen) if kind == "bcos" else STANDARD,
            **arguments,
        )
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Build {name}; options are those of `VisionTransformer`{_MORE[kind]}."
    globals()[name] = register_model(build)


_MORE = {"bcos": ", and `b` and `max_out` of every B-cos layer", "standard": ""}

for _variant in VARIANTS:
    _register(*_variant)
