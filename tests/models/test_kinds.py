from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from polysem.errors import SpecError
from polysem.models.attn_scale import AttnScale
from polysem.models.kinds import choose_mixer
from polysem.models.manhattan import Manhattan
from polysem.models.sata import Sata


def test_kinds_by_name() -> None:
    assert choose_mixer("attn_scale") == (AttnScale, {})
    assert choose_mixer({"kind": "sata", "threshold": 0.2}) == (Sata, {"threshold": 0.2})
    given = {"kind": "manhattan", "decomposed": True}
    assert choose_mixer(given) == (Manhattan, {"decomposed": True})
    assert given["kind"] == "manhattan"


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ("satta", "did you mean 'sata'.*allowed: softmax, sata, attn_scale, manhattan"),
        ({"threshold": 0.1}, "of kind None; allowed: softmax"),
        ({"kind": ["sata"]}, "allowed: softmax"),
        ({"kind": "sata", "treshold": 0.1}, "did you mean 'threshold'.*threshold, strength"),
        ({"kind": "attn_scale", "strength": 1}, "has none"),
        ({"kind": "sata", "threshold": [0.1]}, r"threshold of .* 'sata' is \[0.1\]; .* a number"),
        ({"kind": "sata", "strength": True}, "strength of .* 'sata' is True; .* a number"),
        ({"kind": "manhattan", "local": 1}, "local of .* is 1; it must be true or false"),
        ({"kind": "sata", "n_heads": 3}, "no option 'n_heads'"),
        ({"kind": "sata", "threshold": 1.0}, "threshold of SATA is 1.0; it may be 0 to below 1"),
        ({"kind": "manhattan", "start": 0}, "start=0.*above 0"),
        (
            {"kind": "manhattan", "decomposed": True},
            "positions must be 'sincos', 'learn' or 'none'",
        ),
    ],
)
def test_what_there_is_not_is_refused(attention: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        timm.create_model("bcos_vit_micro_patch4_32", attention=attention, depth=1)


def test_patches_are_left_out_only_where_none_is_needed() -> None:
    options = {"attention": "manhattan", "positions": "none", "depth": 1}
    with pytest.raises(SpecError, match="every patch in its place: patch_drop_rate must be 0"):
        timm.create_model("vit_micro_patch4_gap_32", patch_drop_rate=0.5, **options)
    assert timm.create_model("vit_micro_patch4_gap_32", **options)


def test_register_tokens_need_learned_positions() -> None:
    with pytest.raises(SpecError, match=r"reg_tokens.*positions='learn'"):
        timm.create_model("vit_micro_patch4_gap_32", reg_tokens=2, depth=1)
    model = timm.create_model(
        "vit_micro_patch4_gap_32", reg_tokens=2, depth=1, positions="learn", attention="manhattan"
    )
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 1000)
    assert model.blocks[0].attn.attention_bias(66).shape == (4, 66, 66)


@pytest.mark.parametrize("positions", ["none", "learn", "attention"])
def test_a_grid_of_as_many_patches_is_not_mistaken_for_the_trained_one(positions: str) -> None:
    model = timm.create_model(
        "vit_micro_patch4_gap_32", attention="manhattan", positions=positions, depth=1
    )
    with pytest.raises(SpecError, match="trained on 8 × 8"):
        model(torch.rand(1, 3, 16, 64))
    assert model(torch.rand(1, 3, 16, 16)).shape == (1, 1000)
