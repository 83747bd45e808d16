"""Why a class, a neuron or a head fired: maps of what in the image contributed.

``polysem.explain`` is both this package and the function: ``polysem.explain(model, data)``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polysem.explain.explain import Explanations


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Explanations:
        """Call :func:`polysem.explain.explain.explain`, where the arguments are described."""
        from polysem.explain.explain import explain

        return explain(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
