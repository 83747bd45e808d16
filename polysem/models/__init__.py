"""What is studied: B-cos and standard networks, their checkpoints, and hooks into them.

timm is imported before any of these modules: it registers `vit` and `cnn` the moment it is
loaded, which fails while a module that they need is itself half-way through importing timm.
"""

from __future__ import annotations

from polysem import _torchvision

_torchvision.repair()

import timm  # noqa: E402, F401
