"""Files of official B-cos vision transformers load by name and give the package's logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polysem.models.load import load_model
from polysem.models.transform import Transform

pretrained = pytest.importorskip(
    "bcos.models.pretrained", reason="the official package is a development dependency"
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NETWORKS = {
    "vitc_ti_patch1_14": (
        "bcos_vitc_tiny_patch16_224",
        Transform((224, 224), 0.875, "bilinear", inverse=True),
    ),
    "standard_simple_vit_ti_patch16_224": (
        "vit_tiny_patch16_gap_224",
        Transform((224, 224), 0.875, "bilinear", MEAN, STD),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_and_a_name_are_enough(name: str, tmp_path: Path) -> None:
    arch, transform = NETWORKS[name]
    torch.manual_seed(0)
    peer = getattr(pretrained, name)().eval()
    torch.save(peer.state_dict(), tmp_path / "official.pth")
    loaded = load_model(f"bcos:{name}", weights=tmp_path / "official.pth")
    assert (loaded.name, loaded.transform) == (arch, transform)
    x = transform.normalize(torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8))
    with torch.no_grad():
        assert (loaded.model(x) - peer(x)).abs().max() <= 1e-5
