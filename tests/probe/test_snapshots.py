"""Snapshots probed together are those probed one by one, with each image read once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import xarray as xr
from PIL import Image
from small_probe import Noise

from polysem.errors import NonFiniteError, SpecError
from polysem.models.checkpoint import save_checkpoint
from polysem.models.encoder import load_encoder
from polysem.models.snapshots import Snapshot, find_snapshots
from polysem.models.transform import Transform
from polysem.probe import snapshots as at_work
from polysem.probe.embedder import KeptEmbeddings
from polysem.probe.probe import probe
from polysem.probe.snapshots import probe_snapshots
from polysem.store.run import Run

ARCH = "vit_micro_patch8_gap_64"
ARGS = {"img_size": 32, "depth": 1, "num_classes": 3, "embed_dim": 12, "num_heads": 3}
CPU = torch.device("cpu")
SITE = "blocks.0.mlp.hook_post"


class Counted(Noise):
    """Counts how often each image is read."""

    reads: Counter[int]

    def read(self, index: int) -> Image.Image:
        if not hasattr(self, "reads"):
            self.reads = Counter()
        self.reads[index] += 1
        return super().read(index)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Snapshot]:
    folder = tmp_path_factory.mktemp("series")
    for step in (0, 5, 20):
        torch.manual_seed(step)
        state = timm.create_model(ARCH, **ARGS).state_dict()
        save_checkpoint(
            folder / f"{step}.pt", ARCH, ARGS, state, transform=Transform(size=(32, 32)), step=step
        )
    return find_snapshots(folder / "*.pt")[0]


def folders(out: Path, series: list[Snapshot]) -> list[Path]:
    return [out / f"step_{each.step}" for each in series]


def same(a: Run, b: Run, *, but: tuple[str, ...] = ()) -> None:
    for site in a.sites:
        one, other = (run.units(site).drop_vars(but, errors="ignore").load() for run in (a, b))
        xr.testing.assert_equal(one, other)
    assert a.images.equals(b.images)


def test_runs_are_those_of_a_probe_and_images_are_read_once(
    series: list[Snapshot], tmp_path: Path
) -> None:
    source = Counted(broken=(7,))
    places = folders(tmp_path / "out", series)
    begun: list[Path] = []
    assert probe_snapshots(
        series,
        source,
        places,
        device=CPU,
        batch_size=8,
        progress=False,
        begin=begun.append,
    )
    assert begun == [places[-1]]
    assert set(source.reads.values()) == {1} and len(source.reads) == len(source)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["step_0", "step_20", "step_5"]
    final = Run.open(places[-1])
    for snapshot, place in zip(series, places, strict=True):
        alone = probe(
            snapshot.checkpoint, Noise(broken=(7,)), out=tmp_path / "alone", pooled=True,
            embed="model" if snapshot is series[-1] else series[-1].checkpoint, bootstrap=0,
            batch_size=8, device="cpu", overwrite=True, progress=False,
        )  # fmt: skip
        mine = Run.open(place)
        same(mine, alone)
        assert np.array_equal(mine.embeddings, final.embeddings)
        prints = {run.manifest["embedding"]["fingerprint"] for run in (mine, alone)}
        assert len(prints) == 1
        assert mine.manifest["skipped"] == alone.manifest["skipped"] != []


def test_what_is_there_is_kept_and_what_differs_is_made_again(
    series: list[Snapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    record = at_work.record
    monkeypatch.setattr(
        at_work, "record", lambda *a, task, **k: made.append(task) or record(*a, task=task, **k)
    )
    places = folders(tmp_path, series)
    options = {"device": CPU, "sites": SITE, "progress": False}
    source = Counted()
    assert probe_snapshots(series[1:], source, places[1:], **options)  # type: ignore[arg-type]
    assert made == ["step 20", "step 5"]
    assert probe_snapshots(series, source, places, **options)  # type: ignore[arg-type]
    assert made[2:] == ["step 0"] and set(source.reads.values()) == {2}
    assert probe_snapshots(series, source, places, **options)  # type: ignore[arg-type]
    assert len(made) == 3 and set(source.reads.values()) == {2}  # nothing to do, nothing read
    assert probe_snapshots(series, source, places, top_k=3, **options)  # type: ignore[arg-type]
    assert len(made) == 6
    # another last snapshot embeds otherwise: what rested on the older one is made again
    assert probe_snapshots(series[:2], source, places[:2], top_k=3, **options)  # type: ignore[arg-type]
    assert made[6:] == ["step 5", "step 0"]


def test_an_interrupted_probe_keeps_what_was_done(
    series: list[Snapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = at_work.record
    done: list[str] = []

    def interrupted_later(*args: object, task: str, **options: object) -> tuple[bool, float]:
        done.append(task)
        return len(done) > 1, record(*args, task=task, **options)[1]  # type: ignore[arg-type]

    monkeypatch.setattr(at_work, "record", interrupted_later)
    places = folders(tmp_path, series)
    assert not probe_snapshots(series, Noise(), places, device=CPU, sites=SITE, progress=False)
    assert [place.exists() for place in places] == [False, False, True]
    assert [p.name for p in tmp_path.iterdir()] == ["step_20"]


@pytest.mark.parametrize("embed", ["other", "model", None])
def test_embeddings_of_another_encoder_of_each_its_own_or_none(
    series: list[Snapshot], tmp_path: Path, embed: str | None
) -> None:
    encoder = load_encoder("timm:resnet20_32") if embed == "other" else embed
    places = folders(tmp_path, series)
    assert probe_snapshots(
        series, Counted(), places, device=CPU, sites=SITE, embed=encoder, progress=False
    )
    runs = [Run.open(place) for place in places]
    prints = {(run.manifest["embedding"] or {}).get("fingerprint") for run in runs}
    assert len(prints) == (3 if embed == "model" else 1) and (None in prints) == (embed is None)
    if embed == "other":
        alone = probe(
            series[0].checkpoint, Noise(), out=tmp_path / "alone", pooled=True, sites=SITE,
            embed="timm:resnet20_32", bootstrap=0, device="cpu", progress=False,
        )  # fmt: skip
        same(runs[0], alone)
        assert np.array_equal(runs[0].embeddings, alone.embeddings)


def test_a_bad_site_or_activation_leaves_nothing(series: list[Snapshot], tmp_path: Path) -> None:
    begun: list[Path] = []
    with pytest.raises(SpecError, match="no_such_site"):
        probe_snapshots(
            series, Noise(), folders(tmp_path, series), device=CPU, sites="no_such_site",
            begin=begun.append, progress=False,
        )  # fmt: skip
    huge = tmp_path / "huge.pt"
    state = timm.create_model(ARCH, **ARGS).state_dict()
    state["blocks.0.mlp.fc1.weight"] += 3e38
    save_checkpoint(huge, ARCH, ARGS, state, transform=Transform(size=(32, 32)), step=30)
    series = [series[0], Snapshot(30, str(huge), "0" * 64)]
    with pytest.raises(NonFiniteError, match=SITE):
        probe_snapshots(
            series, Noise(), folders(tmp_path / "out", series), device=CPU, sites=SITE,
            begin=begun.append, progress=False,
        )  # fmt: skip
    assert begun == [] and list((tmp_path / "out").iterdir()) == []


def test_kept_embeddings_are_read_in_blocks(
    series: list[Snapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = probe(
        series[0].checkpoint, Noise(broken=(3, 11)), out=tmp_path / "run", sites=SITE,
        embed="model", bootstrap=0, device="cpu", progress=False,
    )  # fmt: skip
    monkeypatch.setattr("polysem.probe.embedder._BLOCK", 5)
    kept = KeptEmbeddings(run, "other")
    rows = run.images.reset_index().set_index("image")["index"]
    for images in ([0, 1, 2], [2, 4], [5, 6, 7, 8, 9, 10, 12], [12], [30, 36], [0, 36]):
        expected = run.embeddings.to_numpy()[rows.loc[images]]
        assert np.array_equal(kept.of(images).numpy(), expected)
