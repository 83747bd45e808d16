"""What is studied: B-cos and standard networks, their checkpoints, and hooks into them.

timm is imported before any of these modules: it registers `vit` and `cnn` the moment it is
loaded, which fails while a module that they need is itself half-way through importing timm.
"""

import timm  # noqa: F401
