"""Names of the places in a network where activations are read; pure, no model needed.

Names are TransformerLens's for transformers (``blocks.3.mlp.hook_post``) and the module path for
CNNs (``layer3.5.hook_post``). What a name means is decided here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from polysem.errors import SpecError, did_you_mean

__all__ = ["DEFAULT_SITES", "Site", "parse_site", "select_sites"]

_BLOCK = re.compile(r"blocks\.(?P<layer>\d{1,100})\.(?P<part>.+)")

# dotted words alone: site names become names of files
_MODULE = re.compile(r"(\w{1,100}\.){1,20}hook_post")

_BLOCK_DIMS = {
    "hook_resid_pre": ("image", "token", "d_model"),
    "hook_resid_mid": ("image", "token", "d_model"),
    "hook_resid_post": ("image", "token", "d_model"),
    "hook_attn_out": ("image", "token", "d_model"),
    "hook_mlp_out": ("image", "token", "d_model"),
    "ln1.hook_normalized": ("image", "token", "d_model"),
    "ln2.hook_normalized": ("image", "token", "d_model"),
    "attn.hook_q": ("image", "token", "head", "d_head"),
    "attn.hook_k": ("image", "token", "head", "d_head"),
    "attn.hook_v": ("image", "token", "head", "d_head"),
    "attn.hook_z": ("image", "token", "head", "d_head"),
    "attn.hook_attn_scores": ("image", "head", "query", "key"),
    "attn.hook_pattern": ("image", "head", "query", "key"),
    "mlp.hook_pre": ("image", "token", "d_mlp"),
    "mlp.hook_post": ("image", "token", "d_mlp"),
}

_NETWORK_DIMS = {
    "hook_embed": ("image", "token", "d_model"),
    "ln_final.hook_normalized": ("image", "token", "d_model"),
    "hook_pooled": ("image", "d_model"),
}

#: The sites that a probe records when none are named: MLP neurons, heads, the neurons before
#: classification, and every channel of a CNN's blocks.
DEFAULT_SITES = ("blocks.*.mlp.hook_post", "blocks.*.attn.hook_z", "hook_pooled", "*.hook_post")


@dataclass(frozen=True)
class Site:
    """One place in a network.

    Attributes
    ----------
    name : str
        Full name, for example ``blocks.3.attn.hook_z``.
    layer : int or None
        Block index; None outside of transformer blocks.
    part : str
        What follows the block, for example ``attn.hook_z``.
    dims : tuple of str
        Words for the axes of the activation, the image axis first.
    """

    name: str
    layer: int | None
    part: str
    dims: tuple[str, ...]

    @property
    def unit_dim(self) -> str:
        """The axis that holds the units of this site: neurons, channels, or whole heads."""
        if "head" in self.dims:
            return "head"
        return "channel" if "channel" in self.dims else self.dims[-1]


def parse_site(name: str) -> Site:
    """Return what a site name means.

    Raises
    ------
    SpecError
        If it is neither a TransformerLens site nor a CNN's ``<module path>.hook_post``.

    >>> parse_site("blocks.3.attn.hook_z").dims
    ('image', 'token', 'head', 'd_head')
    >>> parse_site("layer3.5.hook_post").dims
    ('image', 'channel', 'y', 'x')
    """
    match = _BLOCK.fullmatch(name)
    if match and match["part"] in _BLOCK_DIMS:
        return Site(name, int(match["layer"]), match["part"], _BLOCK_DIMS[match["part"]])
    if name in _NETWORK_DIMS:
        return Site(name, None, name, _NETWORK_DIMS[name])
    in_cnn = _MODULE.fullmatch(name)
    if in_cnn and not name.endswith((".attn.hook_post", ".mlp.hook_post")):
        return Site(name, None, "hook_post", ("image", "channel", "y", "x"))
    parts = [f"blocks.{match['layer']}.{p}" for p in _BLOCK_DIMS] if match else list(_NETWORK_DIMS)
    raise SpecError(f"{name!r} is not the name of a site{did_you_mean(name, parts)}")


def select_sites(available: Sequence[str], patterns: str | Iterable[str]) -> list[str]:
    """Return the available site names that match any of the glob patterns, in network order.

    `patterns` is one glob, several separated by commas, or a list of them.

    Raises
    ------
    SpecError
        If a pattern matches nothing.

    >>> select_sites(["blocks.0.mlp.hook_post", "hook_pooled"], "*.mlp.hook_post")
    ['blocks.0.mlp.hook_post']
    """
    globs = patterns.split(",") if isinstance(patterns, str) else list(patterns)
    chosen: set[str] = set()
    for glob in (g.strip() for g in globs):
        hits = [name for name in available if fnmatchcase(name, glob)]
        if not hits:
            raise SpecError(
                f"no site of this model matches {glob!r}; it has {len(available)} sites such as "
                f"{', '.join(available[:3])}{did_you_mean(glob, available)}"
            )
        chosen.update(hits)
    return [name for name in available if name in chosen]
