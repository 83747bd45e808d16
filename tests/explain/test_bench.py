"""The bench lists every method; its figures are for a quiet machine, not for tests."""

from __future__ import annotations

from polysem.explain.bench import bench_explain
from polysem.explain.methods import applicable_methods
from polysem.models.load import load_model


def test_every_method_has_a_line() -> None:
    spec = "timm:bcos_resnet20_32"
    lines: list[str] = []
    table = bench_explain(models=(spec,), batch_size=1, n_classes=3, repeats=1, report=lines.append)
    assert list(table.columns) == ["model", "method", "ratio"]
    assert set(table["model"]) == {"bcos_resnet20_32"}
    methods = set(applicable_methods(load_model(spec).model))
    assert set(table["method"]) == methods | {"bcos × 3 classes", "bcos in colour"}
    assert (table["ratio"] > 0).all() and len(lines) == len(table)
