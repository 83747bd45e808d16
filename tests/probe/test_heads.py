"""The whole study of heads on a small network: what it keeps, and what it does with bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from polysem.data.dataset import ImageData
from polysem.errors import DataError, NonFiniteError, RunError, SpecError
from polysem.models.load import LoadedModel
from polysem.models.transform import Transform
from polysem.probe import head_batch
from polysem.probe import heads as module
from polysem.probe.gates import GatedViT, frozen, target_cost
from polysem.probe.heads import heads
from polysem.probe.interactions import by_gradients
from polysem.probe.probe import probe
from polysem.store.run import Run

N = 7


class Noise(ImageData):
    """Random pictures of classes a, b, c, the last one without an image."""

    fingerprint = "0" * 64

    def __init__(self, n: int = N, *, labelled: bool = True) -> None:
        names = ("a", "b", "c") if labelled else None
        labels = np.arange(n) % 2 if labelled else None
        super().__init__("noise", [str(i) for i in range(n)], labels=labels, classes=names)

    def read(self, index: int) -> Image.Image:
        pixels = np.random.default_rng(index).integers(0, 256, (16, 24, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def loaded(*, num_classes: int = 3, seed: int = 0, **options: Any) -> LoadedModel:
    torch.manual_seed(seed)
    sizes = {"img_size": (16, 24), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = timm.create_model(
        "vit_tiny_patch16_224", **{**sizes, **options}, num_classes=num_classes
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return LoadedModel(
        model.eval(), Transform(size=(16, 24)), None, "small", "small", str(seed) * 64
    )


def study(out: Path, model: Any = None, data: Any = None, **options: Any) -> Run:
    quick = {"exact_pairs": 4, "draws": 2, "batch_size": 4, "device": "cpu", "progress": False}
    return heads(model or loaded(), data or Noise(), out=out, **{**quick, **options})


def nothing_at(folder: Path) -> bool:
    return not list(folder.iterdir())


def test_a_new_run_holds_everything(tmp_path: Path) -> None:
    run = study(tmp_path / "run", shapley=1)
    gates = run.gates
    assert gates.sizes["image"] == N and gates.sizes["pair"] == 4
    assert gates.attrs["notes"] == [] and gates.attrs["target"] == "margin"
    assert gates["interaction"].dims == ("image", "layer", "head", "layer_2", "head_2")
    assert gates["attention_map"].shape == (N, 2, 3, 2, 3)
    model = loaded()
    images = model.transform.normalize(
        torch.stack([model.transform(Noise().read(i)) for i in range(N)])
    )
    vit, labels = GatedViT(model.model), torch.from_numpy(Noise().labels)
    with frozen(model.model):
        found = by_gradients(vit, images, labels, target_cost("margin"), rows=64)
    pairs = gates["interaction"].to_numpy().reshape(N, 6, 6)
    np.testing.assert_allclose(pairs, found.pairs, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(gates["cost"], found.clean, rtol=1e-4, atol=1e-5)
    first, second = gates["pair_first"].to_numpy(), gates["pair_second"].to_numpy()
    assert (first < second).all()
    shares = gates["logit_share"].sum(("layer", "head")) + gates["mlp_share"].sum("layer")
    total = shares + gates["embedding_share"] + gates["remainder"]
    np.testing.assert_allclose(total, gates["logit"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(run.images["correct"], gates["correct"].astype(bool))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_ablations_replace_what_they_say(tmp_path: Path) -> None:
    run = study(tmp_path / "run", chance=False)
    gates, model = run.gates, loaded()
    vit, cost = GatedViT(model.model), target_cost("margin")
    pixels = torch.stack([model.transform(Noise().read(i)) for i in range(N)])
    images, labels = model.transform.normalize(pixels), torch.from_numpy(Noise().labels)
    seen: dict[int, torch.Tensor] = {}
    with frozen(model.model), torch.no_grad():
        vit.finish(vit.embed(images), 0, {n: lambda z, n=n: seen.update({n: z}) for n in (0, 1)})

        def put(z: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            z = z.clone()
            z[:, :, 2] = value[:, :, 2]
            return z

        mean = seen[1].mean(0, keepdim=True)
        logits = vit.finish(vit.embed(images), 0, {1: lambda z: put(z, mean)})
        expected = cost(logits, labels)
        partners = module.partners(N, 0)
        logits = vit.finish(vit.embed(images), 0, {1: lambda z: put(z, seen[1][partners])})
        resampled = cost(logits, labels)
    assert (partners != np.arange(N)).all() and sorted(partners) == list(range(N))
    np.testing.assert_allclose(gates["cost_mean"][:, 1, 2], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gates["cost_resample"][:, 1, 2], resampled, rtol=1e-4, atol=1e-4)
    assert "chance_cost" not in gates
    np.testing.assert_allclose(gates["drop_cost"][:, 0, 0], gates["cost"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gates["drop_loss"][:, 1, -1], gates["drop_loss"][:, 0, -1])


@pytest.mark.parametrize("method", ["hessian", "exact"])
def test_other_methods_keep_the_same_arrays(tmp_path: Path, method: Any) -> None:
    run = study(tmp_path / "run", method=method, limit=3)
    assert {"cost_zero", "interaction", "chance_interaction"} <= set(run.gates)
    pairs = run.gates["interaction"].to_numpy().reshape(3, 6, 6)
    np.testing.assert_allclose(pairs, pairs.transpose(0, 2, 1), rtol=1e-3, atol=1e-4)
    if method == "exact":
        first, second = run.gates["pair_first"].to_numpy(), run.gates["pair_second"].to_numpy()
        np.testing.assert_allclose(pairs[:, first, second], run.gates["exact"], atol=1e-5)


def test_an_older_run_of_the_same_model_and_data_is_added_to(tmp_path: Path) -> None:
    model, out = loaded(), tmp_path / "run"
    probe(model, Noise(), out=out, device="cpu", progress=False)
    before = Run.open(out).table("units")
    run = study(out, model, limit=3)
    assert run.gates.sizes["image"] == 3
    assert run.table("units").equals(before)
    study(out, model, limit=5)
    assert Run.open(out).gates.sizes["image"] == 5
    with pytest.raises(RunError, match="run of other weights"):
        study(out, loaded(seed=1))
    with pytest.raises(RunError, match="run on other images"):
        other = Noise()
        other.fingerprint = "1" * 64
        study(out, model, other)
    assert Run.open(out).gates.sizes["image"] == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_fails_leaves_the_older_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    out = tmp_path / "run"
    study(out, limit=3)

    def fail(*args: Any, **options: Any) -> None:
        raise error("somewhere in the middle")

    monkeypatch.setattr(module, "measure", fail)
    with pytest.raises(error):
        study(out)
    with pytest.raises(error):
        study(tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert Run.open(out).gates.sizes["image"] == 3


def test_memory_that_does_not_suffice_halves_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = study(tmp_path / "whole", batch_size=16)
    real = head_batch.measure

    def small(vit: Any, batch: Any, plan: Any, *, rows: int) -> Any:
        if rows > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(vit, batch, plan, rows=rows)

    monkeypatch.setattr(module, "measure", small)
    halved = study(tmp_path / "halved", batch_size=16)
    assert halved.gates.attrs["notes"] == ["memory did not suffice for --batch-size 16; 4 was used"]
    np.testing.assert_allclose(
        halved.gates["interaction"], whole.gates["interaction"], rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(halved.gates["cka"], whole.gates["cka"], rtol=1e-4)

    def never(*args: Any, **options: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(module, "measure", never)
    with pytest.raises(SpecError, match="memory does not suffice for one image"):
        study(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_held_against_labels_is_held_to_predictions(tmp_path: Path) -> None:
    unlabelled = study(tmp_path / "a", data=Noise(labelled=False))
    assert "the data has no labels: heads are held to the model's own predictions" in str(
        unlabelled.gates.attrs["notes"]
    )
    assert unlabelled.gates["correct"].all()
    np.testing.assert_array_equal(unlabelled.images["prediction"], unlabelled.gates["held_to"])
    other = study(tmp_path / "b", loaded(num_classes=5))
    assert "5 outputs, the data 3 classes" in str(other.gates.attrs["notes"])


def test_one_class_alone(tmp_path: Path) -> None:
    run = study(tmp_path / "run", of_class="b")
    assert run.gates["image"].to_numpy().tolist() == [1, 3, 5]
    assert study(tmp_path / "by_number", of_class="1").gates.sizes["image"] == 3
    for wrong, said in {
        "dog": "'dog'; it has a, b, c",
        "bb": "did you mean 'b'",
        "3": "'3'",
    }.items():
        with pytest.raises(SpecError, match=f"no class .*{said}"):
            study(tmp_path / "none", of_class=wrong)
    with pytest.raises(DataError, match="none of the 7 images of noise is of the class 'c'"):
        study(tmp_path / "none", of_class="c")
    with pytest.raises(DataError, match="no labels to choose"):
        study(tmp_path / "none", data=Noise(labelled=False), of_class="a")
    assert not (tmp_path / "none").exists()


def test_models_and_numbers_that_make_no_sense(tmp_path: Path) -> None:
    cnn = LoadedModel(
        timm.create_model("resnet20_32", num_classes=3).eval(), Transform(size=(32, 32)), None,
        "cnn", "cnn", "0" * 64,
    )  # fmt: skip
    with pytest.raises(SpecError, match="no attention heads"):
        study(tmp_path / "run", cnn)
    with pytest.raises(SpecError, match="single attention head"):
        study(tmp_path / "run", loaded(num_heads=1, depth=1))
    with pytest.raises(SpecError, match="two classes or more"):
        study(tmp_path / "run", loaded(num_classes=1), Noise(labelled=False))
    with pytest.raises(SpecError, match="limit must be at least 1"):
        study(tmp_path / "run", limit=0)
    with pytest.raises(SpecError, match="unknown method 'gradient'; did you mean 'gradients'"):
        study(tmp_path / "run", method="gradient")
    broken = loaded()
    with torch.no_grad():
        broken.model.head.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError):
        study(tmp_path / "run", broken)
    assert nothing_at(tmp_path)


def test_one_image_and_heads_behind_a_norm(tmp_path: Path) -> None:
    run = study(tmp_path / "run", loaded(qk_norm=True, scale_attn_norm=True), limit=1)
    assert "logit_share" not in run.gates
    assert "no direct attribution to logits" in str(run.gates.attrs["notes"])


def test_the_same_seed_gives_the_same_arrays(tmp_path: Path) -> None:
    one, same = (study(tmp_path / name, limit=4) for name in ("one", "same"))
    other = study(tmp_path / "other", limit=4, seed=1)
    for name in ("exact", "chance_cost", "cost_resample", "drop_loss"):
        np.testing.assert_array_equal(one.gates[name], same.gates[name])
        assert not np.array_equal(one.gates[name], other.gates[name])
