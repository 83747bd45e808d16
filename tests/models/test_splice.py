import numpy as np
import pytest
import torch
from small_models import images_for, small_vit

from polysem.errors import SpecError
from polysem.models.hooked import HookedVisionModel
from polysem.models.splice import fit_readouts, splice_units

SITE, READ = "blocks.1.mlp.hook_post", "blocks.1.ln2.hook_normalized"


@pytest.mark.parametrize("network", ["class_token", "average_pooled", "standard"])
def test_spliced_units_show_their_read_out_and_change_nothing(network: str) -> None:
    model = small_vit(network)
    images, generator = images_for(model), torch.Generator().manual_seed(0)
    rows = torch.randn(3, 24, generator=generator, dtype=torch.float64)
    bias = torch.tensor([0.0, 1.0, 40.0], dtype=torch.float64)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    spliced = splice_units(model, 1, rows, bias)
    with torch.no_grad():
        torch.testing.assert_close(spliced(images), model(images))
        _, before = HookedVisionModel(model).run_with_cache(images, names_filter=[SITE, READ])
        _, after = HookedVisionModel(spliced).run_with_cache(images, names_filter=SITE)
    shown = after[SITE]
    torch.testing.assert_close(shown[..., :-3], before[SITE])
    reads = before[READ] @ rows.T + bias
    torch.testing.assert_close(shown[..., -3:], torch.nn.functional.gelu(reads))
    torch.testing.assert_close(shown[..., -1], reads[..., -1])  # far above 0, GELU changes nothing
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[name])


@pytest.mark.parametrize(
    ("network", "layer", "shape", "message"),
    [
        ("standard", 3, (2, 24), "3 blocks; there is no block 3"),
        ("standard", 1, (2, 23), r"rows \(2, 23\) .* needs \[unit, 24\]"),
        ("bcos", 1, (2, 24), "not into B-cos or gated"),
        ("swiglu_scale_norms", 1, (2, 24), "not into B-cos or gated"),
    ],
)
def test_what_cannot_be_spliced_is_said(
    network: str, layer: int, shape: tuple[int, int], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        splice_units(small_vit(network), layer, torch.zeros(shape), torch.zeros(shape[0]))
    with pytest.raises(SpecError, match="0 blocks"):
        splice_units(torch.nn.Linear(2, 2), 0, torch.zeros(1, 2), torch.zeros(1))


def test_read_outs_are_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(50, 4)) + 3, rng.normal(size=(50, 2))
    off, aims = features - features.mean(0), targets - targets.mean(0)
    penalty = 0.1 * off.var(0).mean() * 50
    expected = np.linalg.inv(off.T @ off + penalty * np.eye(4)) @ off.T @ aims
    found = fit_readouts(torch.from_numpy(features), torch.from_numpy(targets), ridge=0.1)
    np.testing.assert_allclose(found.numpy(), expected.T, rtol=1e-9)
