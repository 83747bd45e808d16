"""What explanations may cost; on a quiet machine: ``pytest tests/benchmarks/bench_explain.py``."""

import pytest

from polysem.explain.bench import MODELS, bench_explain

pytestmark = pytest.mark.filterwarnings("default")


def test_explanations_keep_their_price() -> None:
    table = bench_explain(models=MODELS[:2], report=print).set_index(["model", "method"])
    for model in ("bcos_vit_tiny_patch4_32", "bcos_resnet20_32"):
        assert table.loc[(model, "bcos"), "ratio"] <= 3
        assert table.loc[(model, "bcos × 10 classes"), "ratio"] <= 12
