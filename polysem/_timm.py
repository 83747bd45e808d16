"""Tell timm about polysem's models when timm is imported, without importing timm ourselves.

``import polysem`` then stays fast (the command line starts in well under half a second), and
``timm.create_model("bcos_vitc_tiny_patch4_32")`` works whichever of the two is imported first.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_MODULES = ("polysem.models.vit", "polysem.models.cnn", "polysem.models.bcosify_checkpoint")


def register_models_on_import() -> None:
    """Register now if timm is already imported, else right after it is."""
    if "timm" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


def _register() -> None:
    for name in _MODULES:
        importlib.import_module(name)


class _AfterTimm(importlib.abc.MetaPathFinder):
    """Finds nothing itself; lends timm's own loader a first and a last step."""

    _searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "timm" or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec("timm")
        finally:
            self._searching = False
        # Others ask for the spec without importing (transformers does), so nothing is done yet.
        if spec is not None and spec.loader is not None:
            self._extend(spec.loader)
        return spec

    def _extend(self, loader: importlib.abc.Loader) -> None:
        load = loader.exec_module

        def load_then_register(module: ModuleType) -> None:
            from polysem import _torchvision

            _torchvision.repair()
            load(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        loader.exec_module = load_then_register  # type: ignore[method-assign]
