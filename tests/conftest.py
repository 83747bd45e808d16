"""Imported before every test: with polysem in place timm imports beside any torchvision."""

import torch

import polysem  # noqa: F401

# Tests use small tensors, on which threads wait for each other more than they work.
torch.set_num_threads(1)
