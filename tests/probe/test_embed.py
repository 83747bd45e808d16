"""Embeddings of a run's images: in the probe's pass, in one of their own, and of crops."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from small_probe import Noise, models

from polysem.analysis.monosemanticity import centroids, monosemanticity_score
from polysem.errors import CheckpointError, NonFiniteError, RunError, SpecError
from polysem.models.encoder import Encoder, encoder_of
from polysem.models.load import LoadedModel
from polysem.models.transform import Transform
from polysem.probe.accumulators import image_hash
from polysem.probe.bootstrap import poisson_weights
from polysem.probe.crops import crop_box, embed_crops, places_of
from polysem.probe.embed import embed
from polysem.probe.probe import probe
from polysem.store.additions import add_arrays
from polysem.store.run import Run


def constant(model: LoadedModel, value: float) -> Encoder:
    """An encoder whose features are all alike, or all 0."""
    return Encoder(
        "constant", f"constant {value}", model.transform, model.model,
        lambda inputs: torch.full((len(inputs), 3), value),
    )  # fmt: skip


def colours(size: int = 16) -> Encoder:
    """An encoder by mean colour, with a transform of its own."""
    transform = Transform(size=(size, size), crop_pct=1.0)
    return Encoder(
        "colours", f"colours {size}", transform, torch.nn.Linear(1, 1),
        lambda inputs: inputs.mean((2, 3)),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["cls", "bcos", "cnn"])
def test_own_features_in_the_probes_pass(name: str, tmp_path: Path) -> None:
    model, data = models()[name](), Noise(21, broken=(4,))
    run = probe(
        model, data, out=tmp_path / "run", embed="model", bootstrap=3, pooled=True, batch_size=8
    )
    kept = [i for i in range(21) if i != 4]
    pixels = torch.stack([model.transform(data.read(i)) for i in kept])
    encoder = encoder_of(model)
    assert run.embeddings.dims == ("image", "dim")
    assert run.embeddings.attrs["fingerprint"] == encoder.fingerprint
    np.testing.assert_allclose(run.embeddings, encoder(pixels), atol=1e-5)
    assert run.manifest["embedding"] == {"encoder": "model", "fingerprint": encoder.fingerprint}
    weights = poisson_weights(torch.from_numpy(image_hash([data.keys[i] for i in kept])), 3)
    for site in run.sites:
        units, e = run.units(site).load(), run.embeddings.to_numpy()
        for tail in units["tail"].values:
            pool = (
                "value"
                if "value" in units["pool"].values
                else {"upper": "max", "lower": "min"}[str(tail)]
            )
            a = units["pooled"].sel(pool=pool).to_numpy() * (-1 if tail == "lower" else 1)
            face = units.sel(tail=tail)
            np.testing.assert_allclose(
                face["monosemanticity"], monosemanticity_score(a, e), atol=1e-9
            )
            np.testing.assert_allclose(face["centroid"], centroids(a, e), atol=1e-5)
            means = (weights.numpy() @ a.astype(float)) / weights.sum(1).numpy()[:, None]
            np.testing.assert_allclose(face["replicate_mean"], means, rtol=1e-5, atol=1e-6)
            assert face["replicate_monosemanticity"].shape == (3, a.shape[1])
            assert face["replicate_class_mean"].shape == (3, 3, a.shape[1])


def test_another_encoder_sees_the_same_images_in_its_own_size(tmp_path: Path) -> None:
    model, data = models()["average"](), Noise(9)
    run = probe(model, data, out=tmp_path / "run", embed=colours(), batch_size=4)
    transform = Transform(size=(16, 16), crop_pct=1.0)
    pixels = torch.stack([transform(data.read(i)) for i in range(9)])
    exact = transform.normalize(pixels).mean((2, 3)).numpy()
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(run.embeddings, exact, atol=1e-6)
    assert run.units("hook_pooled").sizes["replicate"] == 20


def test_without_embed_nothing_is_added(tmp_path: Path) -> None:
    run = probe(models()["average"](), Noise(5), out=tmp_path / "run", sites="hook_pooled")
    assert run.manifest["embedding"] is None
    with pytest.raises(RunError, match=r"no embeddings of its images; make them with"):
        _ = run.embeddings
    units = run.units("hook_pooled")
    assert not {"monosemanticity", "centroid", "replicate_mean"} & set(units)


def test_a_pass_of_its_own_equals_the_probes_and_is_kept_and_shared(tmp_path: Path) -> None:
    model, data = models()["average"](), Noise(11, broken=(2,))
    first, second = (
        probe(model, data, out=tmp_path / name, sites="hook_pooled") for name in ("a", "b")
    )
    own = probe(model, data, out=tmp_path / "c", sites="hook_pooled", embed=colours())
    assert embed([first, second], colours(), data=data, batch_size=4) == {
        first.path: "embedded",
        second.path: "copied",
    }
    np.testing.assert_allclose(first.embeddings, own.embeddings, atol=1e-6)
    np.testing.assert_array_equal(second.embeddings, first.embeddings)
    assert embed(own, colours(), data=data) == {own.path: "kept"}
    assert embed(own, colours(8), data=data) == {own.path: "embedded"}  # another encoder
    assert Run.open(own.path).embeddings.attrs["fingerprint"] == "colours 8"
    assert embed(own, colours(8), data=data, overwrite=True) == {own.path: "embedded"}


def test_embeddings_without_direction_are_refused(tmp_path: Path) -> None:
    model, data = models()["average"](), Noise(6)
    run = probe(model, data, out=tmp_path / "run", sites="hook_pooled", embed=colours())
    before = run.embeddings.to_numpy()
    with pytest.raises(NonFiniteError, match="constant gives no direction for image 'noise/000'"):
        embed(run, constant(model, 0.0), data=data)
    with pytest.raises(NonFiniteError, match="take another encoder"):
        probe(model, data, out=tmp_path / "new", embed=constant(model, float("nan")))
    assert not (tmp_path / "new").exists()
    np.testing.assert_array_equal(Run.open(run.path).embeddings, before)


def test_a_model_that_changed_is_not_taken_for_the_runs(tmp_path: Path) -> None:
    model = models()["average"]()  # spec timm:…, whose weights are not those of the run
    run = probe(model, Noise(4), out=tmp_path / "run", sites="hook_pooled")
    with pytest.raises(CheckpointError, match="no longer holds the weights"):
        embed(run, "model", data=Noise(4))


@pytest.mark.parametrize("replicates", [-1, 1])
def test_impossible_replicates_are_refused(replicates: int, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="bootstrap must be 0, or at least 2"):
        probe(models()["average"](), Noise(4), out=tmp_path / "run", bootstrap=replicates)


def test_crop_boxes_stay_in_the_image() -> None:
    for grid, size in (((4, 4), (32, 32)), ((3, 5), (33, 48)), ((1, 1), (7, 7)), ((2, 9), (8, 90))):
        for y in range(grid[0]):
            for x in range(grid[1]):
                left, top, right, bottom = crop_box(y, x, grid, size)
                assert 0 <= left < right <= size[1]
                assert 0 <= top < bottom <= size[0]
                assert right - left == bottom - top
                centre_y, centre_x = (y + 0.5) * size[0] / grid[0], (x + 0.5) * size[1] / grid[1]
                assert left <= centre_x <= right
                assert top <= centre_y <= bottom


def test_crops_are_what_lies_where_the_exemplar_fired(tmp_path: Path) -> None:
    model, data = models()["bcos"](), Noise(7)
    run = probe(model, data, out=tmp_path / "run", top_k=9)
    site, encoder = "blocks.0.mlp.hook_post", colours()
    embed_crops(run, encoder, sites="blocks.0.*,hook_pooled", data=data, batch_size=64)
    units, found = run.units(site), run.crop_embeddings(site)
    assert found.dims == ("tail", "unit", "rank", "dim")
    assert found.attrs["encoder"] == "colours"
    assert found.isel(rank=slice(7, None)).isnull().all()  # seven images, nine ranks
    for tail, unit, rank in (("upper", 0, 0), ("lower", 3, 6), ("upper", 11, 2)):
        one = units.sel(tail=tail).isel(unit=unit, rank=rank)
        seen = model.transform(data.read(int(one["top_image"])))
        grid = (units.sizes["y"], units.sizes["x"])
        left, top, right, bottom = crop_box(int(one["top_y"]), int(one["top_x"]), grid, (32, 32))
        crop = seen[:, top:bottom, left:right].permute(1, 2, 0).numpy()
        exact = encoder(encoder.transform(Image.fromarray(crop))[None])[0]
        np.testing.assert_allclose(
            found.sel(tail=tail).isel(unit=unit, rank=rank), exact, atol=1e-6
        )
    with pytest.raises(RunError, match="no embeddings of crops at blocks"):
        run.crop_embeddings("blocks.1.mlp.hook_post")
    with pytest.raises(SpecError, match="no place in the image to crop"):
        embed_crops(run, encoder, sites="hook_pooled", data=data)


def test_places_are_where_most_was_contributed(tmp_path: Path) -> None:
    model, data = models()["bcos"](), Noise(7)
    run = probe(model, data, out=tmp_path / "run", top_k=3)
    site = "blocks.0.mlp.hook_post"
    before = places_of(run, site)
    assert before.by == "activation"
    np.testing.assert_array_equal(before.at[1], run.units(site)["top_y"])
    n_units = run.units(site).sizes["unit"]
    maps = np.zeros((2, n_units, 2, 8, 8), dtype="f4")  # two of three ranks, of a finer grid
    maps[0, :, :, 6, 1], maps[0, :, :, 2, 5] = 1, -5
    maps[1, :, :, 6, 1], maps[1, :, :, 2, 5] = 1, -5
    arrays = {"contribution": (("tail", "unit", "rank", "y", "x"), maps)}
    coords = {"tail": np.array(["upper", "lower"], dtype=object)}
    add_arrays(run, "contributions", {site: xr.Dataset(arrays, coords)})
    after = places_of(run, site)
    assert (after.by, after.grid) == ("contribution", (8, 8))
    # any window with the cell will do; the lower tail is contributed to by what is negative
    there = np.isfinite(after.at).all(0)[..., :2]
    for tail, (row, column) in enumerate(((6, 1), (2, 5))):
        y, x = after.at[1:, tail, :, :2][:, there[tail]]
        assert (np.abs(y - row) <= 2).all() and (np.abs(x - column) <= 2).all()
    grid = before.grid[0]
    rest = np.isfinite(before.at).all(0)[..., 2]
    expected = (before.at[1][..., 2] + 0.5) * 8 // grid
    np.testing.assert_array_equal(after.at[1][..., 2][rest], expected[rest])


def test_a_background_of_crops_is_shared_by_sites_of_one_grid(tmp_path: Path) -> None:
    model, data = models()["bcos"](), Noise(7)
    run = probe(model, data, out=tmp_path / "run", top_k=3)
    embed_crops(run, colours(), sites="blocks.*.mlp.hook_post", name="clip_crops", background=20,
                data=data)  # fmt: skip
    first, second = (run.clip_crops(f"blocks.{layer}.mlp.hook_post") for layer in (0, 1))
    assert first["background"].dims == ("place", "dim")
    assert len(first["background"]) == 20
    np.testing.assert_array_equal(first["background"], second["background"])
    with pytest.raises(RunError, match="describe-neurons"):
        run.clip_crops("hook_pooled")
