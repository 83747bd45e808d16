"""Imported before every test: with torchvision repaired timm, transformers and bcos import."""

import os
import tempfile

import hypothesis
import pytest
import torch

from polysem import _torchvision

_torchvision.repair()

# What is cached for later runs must not come from, or go to, the cache of whoever runs the tests.
os.environ["POLYSEM_CACHE"] = tempfile.mkdtemp(prefix="polysem-tests-")

# Tests use small tensors, on which threads wait for each other more than they work.
torch.set_num_threads(1)

# How long an example takes says more of the machine than of the code; in CI a failure must be one
# that the change made, so examples are the same every time.
hypothesis.settings.register_profile(
    "polysem", deadline=None, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("polysem")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Draw the same numbers in every run: weights that a test leaves to chance included."""
    torch.manual_seed(0)
