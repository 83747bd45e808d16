"""Let the overcomplete package import beside a matplotlib that it was not written for.

overcomplete 0.3 draws colour maps at import with ``matplotlib.cm.get_cmap``, which matplotlib
3.9 removed; ``matplotlib.pyplot.get_cmap`` is the same function. It is lent for the import only.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from unittest.mock import patch

from polysem import _torchvision
from polysem.errors import MissingError

__all__ = ["import_overcomplete"]


def import_overcomplete() -> ModuleType:
    """Return the overcomplete package.

    Raises
    ------
    MissingError
        If it is not installed.
    """
    import matplotlib.cm
    import matplotlib.pyplot as plt

    _torchvision.repair()
    try:
        if hasattr(matplotlib.cm, "get_cmap"):
            return importlib.import_module("overcomplete")
        with patch.object(matplotlib.cm, "get_cmap", plt.get_cmap, create=True):
            return importlib.import_module("overcomplete")
    except ModuleNotFoundError as error:
        if error.name != "overcomplete":
            raise
        raise MissingError(
            "dictionaries need the overcomplete package; install it with: "
            'pip install "polysem[dictionaries]"'
        ) from None
