"""What a probe may cost; on a quiet machine: ``pytest tests/benchmarks/bench_probe.py``."""

import pytest

from polysem.probe.bench import bench_probe

pytestmark = pytest.mark.filterwarnings("default")


def test_probe_keeps_its_price() -> None:
    table = bench_probe(report=print).set_index("model")
    assert table.loc["vit_small_patch16_224", "ratio"] <= 1.08
    assert table.loc["vit_small_patch16_224 --patterns", "ratio"] <= 1.2
    few, many = table.loc["bcos_vit_micro_patch8_64"].sort_values("images")["peak_mb"]
    assert many <= 1.05 * few
