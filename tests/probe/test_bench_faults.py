"""Three probes killed for real; fifty are `polysem bench faults`."""

from pathlib import Path

from polysem.probe.bench_faults import MEANINGS, bench_faults, digest


def test_killed_probes_lose_nothing() -> None:
    lines: list[str] = []
    table = bench_faults(trials=3, data="shapes:test?n=64&size=32", seed=1, report=lines.append)
    assert list(table.columns) == list(MEANINGS)
    assert len(lines) == len(table) == 3
    assert table["identical"].all()


def test_a_changed_byte_is_another_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "manifest.json").write_text('{"seconds": 1, "n_images": 2}')
    (tmp_path / "a" / "x").write_bytes(b"x")
    before = digest(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text('{"seconds": 5, "n_images": 2}')
    assert digest(tmp_path / "a") == before
    (tmp_path / "a" / "x").write_bytes(b"y")
    assert digest(tmp_path / "a") != before
