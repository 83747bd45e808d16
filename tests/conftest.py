"""Imported before every test: with torchvision repaired timm, transformers and bcos import."""

import torch

from polysem import _torchvision

_torchvision.repair()

# Tests use small tensors, on which threads wait for each other more than they work.
torch.set_num_threads(1)
