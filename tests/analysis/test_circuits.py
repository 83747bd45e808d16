"""Circuits of a network built by hand, in which what drives each unit is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from PIL import Image
from shell import polysem
from torch import Tensor, nn

from polysem.analysis.circuits import CIRCUIT_MEANINGS, UNIT_CIRCUIT_MEANINGS, circuits
from polysem.data.dataset import ImageData
from polysem.errors import RunError, SpecError
from polysem.explain.upstream import upstream
from polysem.models.load import LoadedModel
from polysem.models.transform import Transform
from polysem.probe.probe import probe
from polysem.store.additions import add_arrays
from polysem.store.run import Run

N = 48
SITE, BEFORE = "body.3.hook_post", "body.1.hook_post"


class Coloured(ImageData):
    """Red images, green images, and dark ones, each with noise."""

    fingerprint = "c" * 64

    def __init__(self) -> None:
        super().__init__("coloured", [f"{i}.png" for i in range(N)])

    def read(self, index: int) -> Image.Image:
        pixels = np.random.default_rng(index).integers(0, 40, (8, 8, 3), dtype=np.uint8)
        if index % 3 < 2:
            pixels[2:6, 2:6, index % 3] += 150 + 2 * np.uint8(index // 3)
        return Image.fromarray(pixels)


class Wired(nn.Module):
    """Units: 0 red or green, 1 red alone, 2 dead; before them red, green and noisy mixtures."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1), nn.ReLU())
        self.fc = nn.Linear(3, 2)
        noise = 0.02 * torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.body[0].weight[:3, :, 0, 0] = torch.eye(3)
            self.body[0].weight[3:, :, 0, 0] = noise
            self.body[2].weight[0, :, 0, 0] = torch.tensor([1.0, 1, 0, 0.3, 0.3, 0.3])
            self.body[2].weight[1, :, 0, 0] = torch.tensor([1.0, 0, 0, 0, 0, 0])
            self.body[2].bias[2] = -1

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


def wired() -> LoadedModel:
    return LoadedModel(Wired().eval(), Transform(size=(8, 8)), None, "wired", "wired", "d" * 64)


def probed(out: Path, **options: Any) -> Run:
    options = {"top_k": 16, "sites": [BEFORE, SITE]} | options
    return probe(wired(), Coloured(), out=out, device="cpu", progress=False, **options)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    found = probed(tmp_path / "run")
    upstream(found, wired(), data=Coloured(), device="cpu", progress=False)
    return found


def test_two_drivers_are_two_circuits_and_one_is_one(run: Run) -> None:
    units, parts = circuits(run, progress=False)
    assert list(units.columns) == list(UNIT_CIRCUIT_MEANINGS)
    assert list(parts.columns) == list(CIRCUIT_MEANINGS)
    pd.testing.assert_frame_equal(run.table("unit_circuits"), units, check_dtype=False)
    assert units["facets"].tolist() == [2, 1, 0]
    assert set(units["seen"]) == {BEFORE}
    assert units[["within", "across"]].isna().all(axis=None)  # no embeddings
    images = run.units(SITE)["top_image"].sel(tail="upper").to_numpy()[0]
    shares = run.upstream(SITE)["share"].sel(tail="upper").to_numpy()[0]
    colours = []
    for circuit in parts[parts["unit"] == 0].itertuples():
        (colour,) = set(images[circuit.ranks].astype(int) % 3)  # all of one colour
        colours.append(colour)
        assert (shares[circuit.ranks].argmax(1) == colour).all()
    assert sorted(colours) == [0, 1]


def test_distances_tell_whether_circuits_look_apart(run: Run) -> None:
    kinds = np.eye(3, 4, dtype=np.float32)[np.arange(N) % 3]
    array = xr.DataArray(kinds, dims=("image", "dim"), attrs={"fingerprint": "0"})
    add_arrays(run, "embeddings", xr.Dataset({"embedding": array}))
    units, _ = circuits(run, progress=False)
    assert units["within"].tolist()[:2] == pytest.approx([0, 0])
    assert units["across"][0] == pytest.approx(2**0.5) and np.isnan(units["across"][1])
    assert units[["within", "across"]].iloc[2].isna().all()


def test_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = polysem(capsys, "facets", run.path, "--by", "circuits")
    assert code == 0, err
    assert "Circuits of 2 living faces" in out and "3 circuits; unit_circuits.parquet" in out
    assert not (run.path / "tables" / "unit_facets.parquet").exists()


def test_what_is_missing_is_said(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no site"):
        circuits(run, sites="blocks.9.*", progress=False)
    with pytest.raises(RunError, match=f"what made {BEFORE} fire"):
        circuits(run, sites=BEFORE, progress=False)
    upstream(run, wired(), data=Coloured(), exemplars=5, progress=False)
    with pytest.raises(RunError, match=f"at most 5 traced exemplars a unit at {SITE}"):
        circuits(run, progress=False)
    bare = probed(tmp_path / "bare", sites=[SITE])
    with pytest.raises(
        RunError, match=r"upstream; trace it with polysem explain --run .*--upstream"
    ):
        circuits(bare, progress=False)
    with pytest.raises(SpecError, match="cannot be traced upstream"):
        upstream(bare, wired(), data=Coloured(), progress=False)
    few = upstream(run, wired(), data=Coloured(), exemplars=9, progress=False)
    assert few.is_dir() and circuits(run, progress=False)[0]["exemplars"].tolist() == [9, 9, 0]


def test_a_run_without_exemplars(tmp_path: Path) -> None:
    class Dark(Coloured):
        def read(self, index: int) -> Image.Image:
            return Image.new("RGB", (8, 8))

    found = probe(
        wired(), Dark(), out=tmp_path / "dark", sites=[BEFORE, SITE], device="cpu", progress=False
    )
    with pytest.raises(RunError, match=f"has no exemplars at {SITE}"):
        upstream(found, wired(), data=Dark(), progress=False)
