"""What one process knows of the others."""

from __future__ import annotations

import pytest
import torch

from polysem.errors import SpecError
from polysem.launch import Launch, launched
from polysem.processes import processes


def test_alone_it_takes_the_device_it_was_given_and_leaves_accelerate_as_found() -> None:
    from accelerate.state import is_initialized

    with processes("cpu") as group:
        assert (group.count, group.number, group.first) == (1, 0, True)
        assert group.device == torch.device("cpu")
        values = torch.arange(3.0)
        assert group.sum(values) is values
        assert group.join(values) is values
        assert group.collect(values) == [values]
        group.wait()
    assert not is_initialized()
    assert launched() == Launch(0, 1, 0)


def test_one_of_several_cannot_be_given_a_gpu_of_its_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match="a GPU of its own"), processes("cuda:1"):
        pass
