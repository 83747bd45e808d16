"""The kinds of attention that `vit` knows by name; the mixers themselves have a file a paper."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from polysem.errors import SpecError, did_you_mean
from polysem.models.attn_scale import AttnScale
from polysem.models.cosine import Cosine
from polysem.models.manhattan import Manhattan
from polysem.models.mixers import Softmax
from polysem.models.sata import Sata

__all__ = ["MIXERS", "choose_mixer"]

#: Kinds of attention by the names that models and recipes use.
MIXERS: dict[str, type[Softmax]] = {
    "softmax": Softmax,
    "sata": Sata,
    "attn_scale": AttnScale,
    "manhattan": Manhattan,
    "cosine": Cosine,
}

_GIVEN_BY_THE_LAYER = {"grid", "n_prefix_tokens", "device", "dtype"}


def choose_mixer(attention: str | Mapping[str, Any]) -> tuple[type[Softmax], dict[str, Any]]:
    """Return the class of a kind of attention and its options.

    Parameters
    ----------
    attention : str or mapping
        A name in `MIXERS`; or a mapping with the name under ``kind`` and options of that kind.

    Raises
    ------
    SpecError
        If there is no such kind, or it has no such option.

    Examples
    --------
    >>> choose_mixer("softmax")
    (<class 'polysem.models.mixers.Softmax'>, {})
    """
    options = {"kind": attention} if isinstance(attention, str) else dict(attention)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in MIXERS:
        near = did_you_mean(kind, MIXERS) if isinstance(kind, str) else ""
        raise SpecError(f"attention is of kind {kind!r}{near}; allowed: {', '.join(MIXERS)}")
    mixer = MIXERS[kind]
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(mixer).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in _GIVEN_BY_THE_LAYER
    }
    for name, value in options.items():
        if name not in defaults:
            raise SpecError(
                f"attention of kind {kind!r} has no option {name!r}{did_you_mean(name, defaults)}; "
                f"it has {', '.join(defaults) or 'none'}"
            )
        _check_type(f"{name} of attention of kind {kind!r}", value, defaults[name])
    return mixer, options


def _check_type(what: str, value: object, default: object) -> None:
    """Refuse what is no number, or no truth value, where the default is one."""
    yes_or_no = isinstance(default, bool)
    if isinstance(value, bool) is not yes_or_no or not isinstance(value, (bool, int, float)):
        wanted = "true or false" if yes_or_no else "a number"
        raise SpecError(f"{what} is {value!r}; it must be {wanted}")
