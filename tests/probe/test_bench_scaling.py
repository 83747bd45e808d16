"""The bench's table at a small size; nothing is timed."""

from polysem.probe.bench_scaling import MEANINGS, bench_scaling


def test_every_line_has_what_its_columns_promise() -> None:
    lines: list[str] = []
    table = bench_scaling(
        images=(256, 320), units=(8, 16), top_k=(2, 4), processes=(1, 2), n_probed=128,
        report=lines.append,
    )  # fmt: skip
    assert list(table.columns) == list(MEANINGS)
    assert len(lines) == len(table) == 8
    by_axis = dict(list(table.groupby("axis")))
    assert by_axis["images"]["state_mb"].nunique() == 1  # memory does not grow with images
    # the formula in reports/scaling, for 8 units; beside it the sample's keys and a few counts
    bytes_ = 8 * (3 * (56 + 4 * 256 + 80) + 2 * 16 * (12 + 2 * 49))
    measured = by_axis["units"]["state_mb"].iloc[0] * 2**20
    assert abs(measured - bytes_) < 16 * 256 + 1000
    assert by_axis["processes"]["images"].tolist() == [128, 128]
