"""What edges into every unit may cost; run it on a quiet machine:

``pytest tests/benchmarks/bench_circuits.py -s``

Measured is CPU time of `edges` for each exemplar, beside the bare forward pass of one image in
batches: an exemplar is a row of batched backward passes to all sites before, and images are shared.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

import polysem
from polysem.data.shapes import Shapes
from polysem.explain.edges import edges

pytestmark = pytest.mark.filterwarnings("default")

SITES = "blocks.[19].mlp.hook_post,hook_pooled"


@pytest.mark.parametrize("name", ["bcos_vit_tiny_patch4_32", "vit_tiny_patch4_gap_32"])
def test_an_exemplar_costs_few_forward_passes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = polysem.load_model(f"timm:{name}", num_classes=10)
    data = Shapes("test", n=48, size=32)
    run = polysem.probe(model, data, out=tmp_path / "run", sites=SITES, top_k=2, progress=False)
    pixels = torch.stack([model.transform(data.read(i)) for i in range(16)])
    images = model.transform.normalize(pixels)
    for timed in (False, True):  # the first call chooses kernels
        start = time.process_time()
        with torch.inference_mode():
            for _ in range(4 if timed else 1):
                model.model(images)
        bare = (time.process_time() - start) / 64
    start = time.process_time()
    edges(run, model, data=data, sites=SITES, exemplars=1, check=0, progress=False)
    each = (time.process_time() - start) / run.table("edge_totals")["exemplars"].sum()
    print(f"{name}: {each / bare:.2f} bare forward passes an exemplar")
    assert each <= 4 * bare
