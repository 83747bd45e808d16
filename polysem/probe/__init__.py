"""What is recorded: hooks, streaming statistics and the probe that joins them.

``polysem.probe`` is both this package and the function: ``polysem.probe(model, data, out=...)``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polysem.store.run import Run


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Run:
        """Call :func:`polysem.probe.probe.probe`, where the arguments are described."""
        from polysem.probe.probe import probe

        return probe(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
