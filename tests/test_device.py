"""Devices by name."""

import pytest
import torch

from polysem.device import choose_device
from polysem.errors import SpecError


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "cuda:99", "meta:x"):
        with pytest.raises(SpecError, match=f"device '{name}' cannot be used"):
            choose_device(name)
