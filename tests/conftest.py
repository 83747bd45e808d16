"""Imported before every test: with torchvision repaired timm, transformers and bcos import."""

import hypothesis
import torch

from polysem import _torchvision

_torchvision.repair()

# Tests use small tensors, on which threads wait for each other more than they work.
torch.set_num_threads(1)

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
