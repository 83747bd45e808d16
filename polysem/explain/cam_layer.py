"""Which layer's maps a class activation map is made of, by model and target."""

from __future__ import annotations

from typing import Any

from torch import nn

from polysem.errors import SpecError
from polysem.explain.target import Target, TargetLike, sites_of
from polysem.sites import parse_site

__all__ = ["cam_layer", "require_maps"]

#: Sites after all blocks: what holds for the classes holds for them.
_LAST = ("ln_final.hook_normalized", "hook_pooled")


def require_maps(model: nn.Module, target: TargetLike | None = None) -> None:
    """Refuse a model of which no layer gives maps, or none before a target.

    Raises
    ------
    SpecError
        If there is none that polysem knows.
    """
    if target is not None:
        cam_layer(model, target)
    if not sites_of(model):
        raise SpecError(
            f"class activation maps need a layer of known places, and {type(model).__name__} has "
            "none that polysem knows: it reads timm vision transformers and CNNs"
        )


def cam_layer(model: nn.Module, target: TargetLike) -> str:
    """Return the site whose maps are weighed.

    For classes, the last maps from which the way to the logits is as linear as it gets: a CNN's
    last block; of an average-pooled transformer the output of its final norm, or of its last
    block if the norm comes after pooling. With a class token alone pooled, later patches have no
    influence, so it is what the last block's attention reads. For a unit of a block, likewise
    what that block reads.

    Raises
    ------
    SpecError
        If the model has no such layer, or none comes before the target.
    """
    require_maps(model)
    sites = sites_of(model)
    unit_site = target.site if isinstance(target, Target) else None
    if not hasattr(model, "blocks") or not any(s.startswith("blocks.") for s in sites):
        return _cnn_layer(sites, unit_site)
    last = max(parse_site(s).layer or 0 for s in sites)
    if unit_site is None or unit_site == "hook_pooled":
        return _final_layer(model, sites, last)
    layer = parse_site(unit_site).layer
    if unit_site in _LAST:
        layer = last
    elif layer is not None and unit_site.endswith(("hook_resid_pre", "ln1.hook_normalized")):
        layer -= 1
    if layer is None or layer < 0:
        raise SpecError(f"no layer of maps comes before {unit_site}; explain it by bcos")
    return _read_by_block(sites, layer)


def _final_layer(model: Any, sites: list[str], last: int) -> str:
    if getattr(model, "global_pool", "") == "token":
        return _read_by_block(sites, last)
    final = "ln_final.hook_normalized"
    return final if final in sites else f"blocks.{last}.hook_resid_post"


def _read_by_block(sites: list[str], layer: int) -> str:
    """Return what a block's attention reads; blocks that norm afterwards read the stream."""
    normed = f"blocks.{layer}.ln1.hook_normalized"
    return normed if normed in sites else f"blocks.{layer}.hook_resid_pre"


def _cnn_layer(sites: list[str], unit_site: str | None) -> str:
    maps = [site for site in sites if "channel" in parse_site(site).dims]
    if unit_site in maps:
        maps = maps[: maps.index(unit_site)]
        if not maps:
            raise SpecError(
                f"no layer of maps comes before {unit_site}; input_gradient explains it"
            )
    return maps[-1]
