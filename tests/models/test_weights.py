"""Digests, fitting and finiteness of weights; reading files is tested with `checkpoint`."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from polysem.errors import CheckpointError, NonFiniteError
from polysem.models.weights import fit, require_finite, state_digest

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]


def tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(0, 9, (2, 3, 5), generator=generator)
    return {"b": draw.to(dtype), "a": draw[0, 0, 0].to(dtype), "c": draw[:, :0].to(dtype)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_digest_depends_on_content_alone(dtype: torch.dtype) -> None:
    was = tensors(dtype=dtype)
    digest = state_digest(was)
    assert len(digest) == 64 and int(digest, 16) >= 0
    assert state_digest(dict(sorted(was.items()))) == digest
    strided = {**was, "b": was["b"].transpose(0, 2).contiguous().transpose(0, 2)}
    assert not strided["b"].is_contiguous() and state_digest(strided) == digest
    assert state_digest({k: nn.Parameter(v, requires_grad=False) for k, v in was.items()}) == digest


def test_the_digest_notices_every_change() -> None:
    was = tensors()
    changed = was["b"].clone()
    changed[1, 2, 4] += 1
    others = [
        {**was, "b": changed},
        {**was, "b": was["b"].double()},
        {**was, "b": was["b"].reshape(3, 2, 5)},
        {**was, "d": was["a"]},
        {k: v for k, v in was.items() if k != "c"},
        {"a": was["a"], "b": was["c"], "c": was["b"]},
    ]
    assert len({state_digest(each) for each in [was, *others]}) == len(others) + 1


def test_the_digest_stays_what_it_was() -> None:
    """Runs are told apart by it, so that it may not change between versions."""
    state = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(4)}
    content = b"n torch.int64 ()\n" + struct.pack("<q", 4)
    content += b"w torch.float32 (2, 3)\n" + struct.pack("<6f", *range(6))
    assert state_digest(state) == hashlib.sha256(content).hexdigest()


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_different_weights_have_different_digests(a: int, b: int) -> None:
    equal = all(torch.equal(tensors(a)[key], tensors(b)[key]) for key in "abc")
    assert (state_digest(tensors(a)) == state_digest(tensors(b))) == equal


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def test_weights_that_fit_replace_all() -> None:
    a, b = network(), network()
    fit(a, b.state_dict(), source="file", name="net")
    assert state_digest(a.state_dict()) == state_digest(b.state_dict())


def test_weights_that_do_not_fit_change_nothing() -> None:
    model, other = network(), network().state_dict()
    before = state_digest(model.state_dict())
    changed = {**other, "0.weight": torch.ones(5, 4), "9.bias": torch.ones(1)}
    del changed["2.bias"]
    with pytest.raises(CheckpointError) as caught:
        fit(model, changed, source="the file", name="net")
    assert str(caught.value) == (
        "the file does not fit net; wrong shape: 0.weight [5, 4] instead of [5, 3]; "
        "missing: 2.bias; unexpected: 9.bias"
    )
    assert state_digest(model.state_dict()) == before


def test_many_differences_are_counted() -> None:
    with pytest.raises(CheckpointError, match=r"missing: 0\.weight, 0\.bias, 1\.weight and 5 more"):
        fit(network(), {"x": torch.ones(1)}, source="file", name="net")


def test_masks_may_be_infinite_but_no_number_may_be_missing() -> None:
    model = network()
    model.register_buffer("mask", torch.full((2, 2), -torch.inf))
    require_finite(model, source="file")
    model.mask[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"file holds NaN or infinity in mask \(1 of 4 values"):
        require_finite(model, source="file")
    model[1].running_mean[:] = torch.inf
    with torch.no_grad():
        model[0].weight[:] = torch.nan
        model[2].weight[0] = torch.inf
        model[2].bias[0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"0\.weight \(15 of 15 values\), .* and 2 more; "):
        require_finite(model, source="file")
