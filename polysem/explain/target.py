"""What is explained: a class, a neuron, a head or a channel, as one number per image.

Every method of this package explains such a number; `forward` computes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor, nn

from polysem.errors import SpecError, did_you_mean
from polysem.models.hooked import HookedVisionModel
from polysem.sites import parse_site

__all__ = ["Pool", "Tail", "Target", "TargetLike", "parse_target", "sites_of"]

Tail = Literal["upper", "lower"]
Pool = Literal["max", "mean", "cls"]


@dataclass(frozen=True)
class Target:
    """What is explained, as one number per image: how strongly it fired.

    Attributes
    ----------
    unit : int
        A class, or the unit of a site: neuron, channel, head.
    site : str or None
        Where the unit is; None for classes, whose number is the logit.
    tail : {"upper", "lower"}
        For units that fire in both directions: the number of the lower tail is the negative of
        the activation, so that contributions are always towards firing.
    pool : {"max", "mean", "cls"} or None
        How patches, or places on a channel's map, become one number; ``cls`` takes the class
        token. By default the strongest of the tail, as the probe ranks exemplars. A head's
        activation at a patch is the length of its output z there, also as in the probe.
    position : int or None
        One patch, or place on a channel's map, counted row by row, instead of pooling.

    Raises
    ------
    SpecError
        If the parts do not go together.

    Examples
    --------
    >>> str(Target(17, "blocks.3.mlp.hook_post", tail="lower"))
    'blocks.3.mlp.hook_post:17:lower'
    >>> str(Target(2))
    'class 2'
    """

    unit: int
    site: str | None = None
    tail: Tail = "upper"
    pool: Pool | None = None
    position: int | None = None

    def __post_init__(self) -> None:
        if self.unit < 0:
            raise SpecError(f"classes and units are counted from 0; there is none {self.unit}")
        if self.tail not in get_args(Tail):
            raise SpecError(f"a tail is upper or lower, not {self.tail!r}")
        if self.pool not in (None, *get_args(Pool)):
            raise SpecError(f"patches are pooled by max, mean or cls, not {self.pool!r}")
        if self.pool is not None and self.position is not None:
            raise SpecError(f"{self}: a position is one patch, there is nothing to pool")
        if self.position is not None and self.position < 0:
            raise SpecError(f"{self}: positions are counted from 0")
        if self.site is None:
            if (self.tail, self.pool, self.position) != ("upper", None, None):
                raise SpecError("a class has no tails and nothing to pool: give its number alone")
            return
        dims = parse_site(self.site).dims
        if not _has_units(self.site):
            raise SpecError(
                f"{self.site} decides where heads look and has no units; explain what they find: "
                f"{self.site.rpartition('.')[0]}.hook_z"
            )
        if "head" in dims and self.tail == "lower":
            raise SpecError(f"{self}: the length of a head's output has no lower tail")
        if not {"token", "channel"} & set(dims) and (self.pool, self.position) != (None, None):
            raise SpecError(f"{self}: {self.site} has no patches to pool or choose from")
        if self.pool == "cls" and "token" not in dims:
            raise SpecError(f"{self}: {self.site} has no class token")

    def __str__(self) -> str:
        if self.site is None:
            return f"class {self.unit}"
        options: list[str] = [self.tail] if self.tail == "lower" else []
        options += [self.pool] if self.pool else []
        options += [str(self.position)] if self.position is not None else []
        return ":".join([self.site, str(self.unit), *options])


#: A target, or int64 [image]: a class for each image.
TargetLike: TypeAlias = Target | Tensor


def sites_of(model: nn.Module) -> list[str]:
    """Return the sites of a model whose units can be explained; none where none is known."""
    try:
        names = list(HookedVisionModel(model).hook_dict)
    except SpecError:
        return []
    return [name for name in names if _has_units(name)]


def _has_units(site: str) -> bool:
    """Tell whether a site is something else than attention weights, queries or keys."""
    return not site.endswith(("hook_q", "hook_k", "hook_attn_scores", "hook_pattern"))


def parse_target(text: str, model: nn.Module, *, classes: Sequence[str] | None = None) -> Target:
    """Return the target that a text names.

    Parameters
    ----------
    text : str
        The name or the number of a class; or ``site:unit``, after which may come ``lower``, a
        pool (``max``, ``mean``, ``cls``) or the number of a patch, as in
        ``blocks.3.mlp.hook_post:17:lower:mean``.
    model : nn.Module
        Whose sites are meant.
    classes : sequence of str, optional
        Names of the logits.

    Raises
    ------
    SpecError
        If there is no such class or site, with near matches, or the text cannot be understood.
        Whether the site has such a unit shows when the model runs.
    """
    text = text.strip()
    names = list(classes or ())
    if text in names:
        return Target(names.index(text))
    if text.isdecimal():
        index = int(text)
        if names and index >= len(names):
            raise SpecError(f"there is no class {index}: the model has {len(names)}, from 0 on")
        return Target(index)
    site, colon, rest = text.partition(":")
    known = sites_of(model)
    if colon and site in known:
        return _site_target(text, site, rest.split(":"))
    if colon or re.search(r"\bhook_|^blocks\.", text):
        if site in known:
            raise SpecError(f"{text!r} names a site; add a unit, as in {site}:0")
        if not _has_units(site):
            Target(0, site)  # says why not
        near = did_you_mean(site, known) or f"; it has {', '.join(known[:3])}, …"
        raise SpecError(f"this model has no site {site!r}{near if known else ''}")
    near = did_you_mean(text, names)
    if not near and names:
        near = f"; there are {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
    unnamed = "" if names else "; nothing names the classes of this model, so give a number"
    raise SpecError(
        f"there is no class {text!r}{near}{unnamed}; a neuron is named site:unit, such as "
        f"{(known or ['blocks.0.mlp.hook_post'])[-1]}:0"
    )


def _site_target(text: str, site: str, parts: list[str]) -> Target:
    unit, *options = parts
    if not unit.isdecimal():
        raise SpecError(f"{text!r}: after the site comes the number of a unit, not {unit!r}")
    said: dict[str, Any] = {}
    value: str | int
    for option in options:
        if option in get_args(Tail):
            key, value = "tail", option
        elif option in get_args(Pool):
            key, value = "pool", option
        elif option.isdecimal():
            key, value = "position", int(option)
        else:
            known = [*get_args(Tail), *get_args(Pool)]
            raise SpecError(
                f"{text!r}: {option!r} is neither {', '.join(known)} nor the number of a patch"
                f"{did_you_mean(option, known)}"
            )
        if key in said:
            raise SpecError(f"{text!r} gives two of {said[key]!r} and {value!r}; one is meant")
        said[key] = value
    return Target(int(unit), site, **said)
