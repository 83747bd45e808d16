"""Let torchvision import beside a torch it was not built for; imported before timm and open_clip.

A CPU-only torch next to the registry's CUDA build of torchvision fails at import with
``operator torchvision::nms does not exist``: the compiled operators cannot load, and torchvision
then registers fake kernels for operators that nobody declared. Declaring the two schemas is
enough for everything that timm and open_clip use (transforms, datasets, plain modules); calling
``nms`` itself still fails, as it should.
"""

from __future__ import annotations

import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_library: torch.library.Library | None = None  # kept alive: its schemas vanish with the object


def repair() -> bool:
    """Import torchvision, declaring its missing operators first if that is what it lacks.

    Returns
    -------
    bool
        True if the repair was needed. An import error of any other kind, a torchvision that is
        not installed among them, is left for the importing library to report.
    """
    global _library
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            return False
    except ImportError:
        return False
    else:
        return False
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]  # half-imported
    _library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        _library.define(schema)  # type: ignore[no-untyped-call]
    import torchvision  # noqa: F401

    return True
