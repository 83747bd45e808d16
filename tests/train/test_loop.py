from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from small_trainings import nearly_the_same

from polysem.errors import (
    CheckpointError,
    DataError,
    MissingError,
    NonFiniteError,
    RecipeError,
    RunError,
)
from polysem.models.checkpoint import read_checkpoint
from polysem.models.load import load_model
from polysem.train.loop import Progress, train
from polysem.train.recipe import Recipe, load_recipe, recipe_to_dict

MakeRecipe = Callable[..., Recipe]
DROPOUT = {"model": {"args": {"embed_dim": 16, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.2}}}


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path).state_dict


def _same(one: Path, other: Path) -> bool:
    a, b = _weights(one), _weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _untimed(log: Path) -> list[dict[str, Any]]:
    timed = ("images_per_s", "cpu_s", "wall_s")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


class _PressCtrlC:
    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, progress: Progress) -> None:
        if progress.stage == "train" and progress.done == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("bcos", [False, True])
def test_what_a_training_writes(tiny_recipe: MakeRecipe, tmp_path: Path, bcos: bool) -> None:
    recipe = tiny_recipe({"notes": "Only a test."}, bcos=bcos)
    seen: list[Progress] = []
    result = train(recipe, out=tmp_path / "out", command="polysem train x", on_progress=seen.append)

    out = tmp_path / "out"
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "README.md", "curves.png", "log.jsonl", "model.safetensors", "recipe.yaml", "snapshots"
    ]  # fmt: skip
    steps = [0, 1, 3, 12]  # at 70 // 16 steps an epoch, three epochs
    snapshots = [out / "snapshots" / f"step_{step:07d}.safetensors" for step in steps]
    assert sorted((out / "snapshots").iterdir()) == snapshots
    assert [read_checkpoint(path).step for path in snapshots] == steps
    assert _same(snapshots[-1], result.path)
    assert not _same(snapshots[0], snapshots[1])

    log = _untimed(out / "log.jsonl")
    assert [line["step"] for line in log] == [4, 8, 12]
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert [p.done for p in seen if p.stage == "train"] == list(range(1, 13))
    assert [p.done for p in seen if p.record] == [4, 8, 12]
    assert {p.stage for p in seen} == {"train", "shapes:train?n=70", "shapes:test?n=30"}

    assert load_recipe(out / "recipe.yaml") == recipe
    loaded = load_model(str(result.path))
    assert loaded.name == recipe.model.name
    assert loaded.classes is not None
    assert len(loaded.classes) == 8
    assert loaded.transform.inverse is bcos
    assert loaded.info["step"] == 12
    assert loaded.info["metrics"] == dict(result.metrics)
    assert 0 <= result.metrics["test_accuracy"] <= 1

    card = (out / "README.md").read_text(encoding="utf-8")
    accuracy = f"**Test accuracy {100 * result.metrics['test_accuracy']:.2f} %**"
    for words in ("Only a test.", accuracy, "polysem train x", "Seed 0;", "embed_dim: 16"):
        assert words in card


@pytest.mark.parametrize(("bcos", "epochs"), [(False, 40), (True, 200)])
def test_it_learns_a_few_images_by_heart(
    tiny_recipe: MakeRecipe, tmp_path: Path, bcos: bool, epochs: int
) -> None:
    changes = {
        "data": {
            "train": "shapes:train?n=16&label=colour",
            "test": "shapes:test?n=2&label=colour",
        },
        "schedule": {"epochs": epochs},
        "optimiser": {"name": "muon", "lr": 1e-2},
        "augment": {"flip": False, "turn": False, "crop_padding": 0},
    }
    train(tiny_recipe(changes, bcos=bcos), out=tmp_path / "out")
    log = _untimed(tmp_path / "out" / "log.jsonl")
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    assert log[-1]["train_accuracy"] > 0.5


def test_the_seed_decides_everything(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    for name, seed in (("one", 4), ("again", 4), ("other", 5)):
        train(tiny_recipe({**DROPOUT, "seed": seed}), out=tmp_path / name)
    model = "model.safetensors"
    assert _same(tmp_path / "one" / model, tmp_path / "again" / model)
    assert not _same(tmp_path / "one" / model, tmp_path / "other" / model)
    assert _untimed(tmp_path / "one" / "log.jsonl") == _untimed(tmp_path / "again" / "log.jsonl")


@pytest.mark.parametrize(("step", "name"), [(1, "adam"), (6, "muon"), (8, "lion")])
def test_a_resumed_training_ends_with_the_same_bits(
    tiny_recipe: MakeRecipe, tmp_path: Path, step: int, name: str
) -> None:
    recipe = tiny_recipe({**DROPOUT, "optimiser": {"name": name, "clip": {"agc": 0.05}}})
    train(recipe, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match=rf"after step {step} of 12; resume"):
        train(recipe, out=tmp_path / "parts", on_progress=_PressCtrlC(step))
    assert (tmp_path / "parts" / "state.pt").exists()
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    train(recipe, out=tmp_path / "parts", resume=True)
    for name in ("model", "snapshots/step_0000003", "snapshots/step_0000012"):
        assert _same(*(tmp_path / part / f"{name}.safetensors" for part in ("whole", "parts")))
    whole, parts = (_untimed(tmp_path / part / "log.jsonl") for part in ("whole", "parts"))
    assert whole == parts


def test_a_killed_training_goes_on_from_its_last_state(
    tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe()  # states after steps 5 and 10; epochs end after 4, 8 and 12

    def die(progress: Progress) -> None:
        if progress.done == 9 and progress.stage == "train":
            raise RuntimeError("the machine is gone")

    train(recipe, out=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="gone"):
        train(recipe, out=tmp_path / "parts", on_progress=die)
    assert [line["step"] for line in _untimed(tmp_path / "parts" / "log.jsonl")] == [4, 8]
    steps: list[int] = []
    train(
        recipe,
        out=tmp_path / "parts",
        resume=True,
        on_progress=lambda p: steps.append(p.done) if p.stage == "train" else None,
    )
    assert steps == [6, 7, 8, 9, 10, 11, 12]
    assert _same(*(tmp_path / part / "model.safetensors" for part in ("whole", "parts")))
    assert _untimed(tmp_path / "whole/log.jsonl") == _untimed(tmp_path / "parts/log.jsonl")


EVERYTHING: dict[str, Any] = {
    "optimiser": {"name": "lion", "lr": 1e-3, "clip": {"agc": 0.05}},
    "augment": {"mixup": 0.3, "erasing": 0.3, "randaugment": {"n": 1}},
    "data": {"sampling": "balanced", "stream": True},
    "drop_head": {"mode": "scheduled", "p_start": 0.3, "p_end": 0.3},
    "ema": 0.9,
    "accumulate": 2,
    "workers": 1,
}
"""All that draws at random or keeps a state, for the training that is killed."""

KILLED_AT = """
import os, signal, sys
from pathlib import Path
from polysem.train.loop import train
from polysem.train.recipe import load_recipe

def watch(progress):
    if progress.stage == "train" and progress.done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

train(load_recipe(sys.argv[1]), out=sys.argv[2], on_progress=watch)
"""


def test_a_training_killed_at_any_step_ends_with_the_same_bits(
    tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    step = random.randrange(1, 12)
    recipe = tiny_recipe({**DROPOUT, **EVERYTHING, "checkpoint_every": 3, "threads": 1})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_to_dict(recipe)), encoding="utf-8")
    words = [sys.executable, "-c", KILLED_AT, path, tmp_path / "parts", str(step)]
    killed = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    train(recipe, out=tmp_path / "whole")
    train(recipe, out=tmp_path / "parts", resume=True)
    for name in ("model", "average", "snapshots/step_0000012"):
        assert _same(*(tmp_path / part / f"{name}.safetensors" for part in ("whole", "parts")))
    whole, parts = (_untimed(tmp_path / part / "log.jsonl") for part in ("whole", "parts"))
    assert whole == parts, f"killed at step {step}"


def test_parts_of_a_step_are_the_step(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Gradients of parts, unequal ones too, add up to those of the whole batch."""
    logs = []
    for accumulate in (1, 3):
        changes = {"accumulate": accumulate, "schedule": {"epochs": 1}, "optimiser": {"lr": 1e-4}}
        train(tiny_recipe(changes), out=tmp_path / str(accumulate))
        logs.append(_untimed(tmp_path / str(accumulate) / "log.jsonl")[0])
    paths = [tmp_path / name / "model.safetensors" for name in ("1", "3")]
    assert nearly_the_same(*(_weights(path) for path in paths))
    assert logs[0]["train_loss"] == pytest.approx(logs[1]["train_loss"], rel=1e-5)


def test_streamed_images_train_the_same_model(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    for name, stream in (("memory", False), ("stream", True)):
        changes = {"data": {"stream": stream}, "schedule": {"epochs": 2}, "workers": 1}
        train(tiny_recipe(changes), out=tmp_path / name)
    assert _same(*(tmp_path / name / "model.safetensors" for name in ("memory", "stream")))


def test_the_average_is_timms_and_is_tested_and_saved(
    tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe({"ema": 0.8, "snapshots": 13, "schedule": {"epochs": 1}})
    result = train(recipe, out=tmp_path / "out")
    steps = [_weights(path) for path in sorted((tmp_path / "out" / "snapshots").iterdir())]
    average = _weights(tmp_path / "out" / "average.safetensors")
    expected = steps[2]  # the decay climbs from 0: 1 − (1 + s)^(−2/3), s steps after the second
    for weights, decay in ((steps[3], 1 - 2 ** (-2 / 3)), (steps[4], 1 - 3 ** (-2 / 3))):
        expected = {k: decay * expected[k] + (1 - decay) * weights[k] for k in weights}
    assert all(torch.allclose(average[key], expected[key], atol=1e-6) for key in average)
    assert not _same(result.path, tmp_path / "out" / "average.safetensors")
    log = _untimed(tmp_path / "out" / "log.jsonl")[-1]
    assert 0 <= log["average_test_accuracy"] <= 1
    loaded = load_model(str(tmp_path / "out" / "average.safetensors"))
    assert loaded.info["metrics"]["test_accuracy"] == result.metrics["average_test_accuracy"]
    assert "moving average" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_labels_that_were_permuted_are_said_to_be(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    changes = {"data": {"permute_labels": True}, "schedule": {"epochs": 1}}
    result = train(tiny_recipe(changes), out=tmp_path / "out")
    assert 0 <= result.metrics["memorised"] <= 1
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"learned {100 * result.metrics['memorised']:.2f} % of them by heart" in card


def test_a_finished_training_has_nothing_left_to_resume(
    tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe({"schedule": {"epochs": 1}})
    result = train(recipe, out=tmp_path / "out")
    before = result.path.read_bytes()
    again = train(recipe, out=tmp_path / "out", resume=True)
    assert dict(again.metrics) == dict(result.metrics)
    assert result.path.read_bytes() == before


def test_what_was_trained_otherwise_is_not_resumed(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(), out=tmp_path / "out", on_progress=_PressCtrlC(2))
    other = tiny_recipe({"optimiser": {"lr": 2e-3}, "seed": 3})
    with pytest.raises(RunError, match=r"optimiser\.lr \(0\.001 there, 0\.002 here\), seed"):
        train(other, out=tmp_path / "out", resume=True)
    train(tiny_recipe({"checkpoint_every": 7}), out=tmp_path / "out", resume=True)
    with pytest.raises(RunError, match="another recipe"):
        train(other, out=tmp_path / "out", resume=True)


def test_a_damaged_state_is_refused(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(), out=tmp_path / "out", on_progress=_PressCtrlC(2))
    state = tmp_path / "out" / "state.pt"
    state.write_bytes(state.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged"):
        train(tiny_recipe(), out=tmp_path / "out", resume=True)


def test_a_folder_in_use_is_left_alone(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = tiny_recipe({"schedule": {"epochs": 1}})
    out = tmp_path / "out"
    with pytest.raises(MissingError, match="no training to resume"):
        train(recipe, out=out, resume=True)
    assert not out.exists()
    train(recipe, out=out)
    with pytest.raises(RunError, match="is not empty"):
        train(recipe, out=out)
    train(tiny_recipe({"schedule": {"epochs": 2}}), out=out, overwrite=True)
    assert len(_untimed(out / "log.jsonl")) == 2
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "diary.txt").write_text("private", encoding="utf-8")
    with pytest.raises(RunError, match="files that no training wrote"):
        train(recipe, out=foreign, overwrite=True)
    with pytest.raises(RunError, match="is a file"):
        train(recipe, out=foreign / "diary.txt")
    assert [path.name for path in foreign.iterdir()] == ["diary.txt"]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": {"name": "vit_mikro_patch8_gap_64"}}, RecipeError, "did you mean"),
        ({"model": {"args": {"embed_dims": 3}}}, RecipeError, "embed_dims"),
        ({"model": {"args": {"num_classes": 3}}}, RecipeError, "the data decides"),
        ({"model": {"args": {"pretrained": True}}}, RecipeError, "come from model.weights"),
        ({"schedule": {"warmup_steps": 12}}, RecipeError, "only 12 steps"),
        ({"data": {"test": "shapes:test?n=9&label=colour"}}, DataError, "different classes"),
        ({"accumulate": 17}, RecipeError, "16 images does not divide into 17 parts"),
        ({"augment": {"mixup": 0.2}, "accumulate": 3}, RecipeError, "must divide by 6"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tiny_recipe: MakeRecipe,
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        train(tiny_recipe(changes), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_stops_the_training(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polysem.train import prepare

    def poisoned(recipe: Recipe, model: torch.nn.Module) -> Any:
        calls = []

        def loss(logits: torch.Tensor, labels: torch.Tensor, *, training: bool) -> torch.Tensor:
            if training:
                calls.append(1)
            wrong = float("nan") if len(calls) == 8 else 1.0
            return wrong * torch.nn.functional.cross_entropy(logits, labels)

        return loss

    monkeypatch.setattr(prepare, "choose_loss", poisoned)
    with pytest.raises(NonFiniteError) as raised:
        train(tiny_recipe(), out=tmp_path / "out")
    message = str(raised.value)
    for words in ("loss is nan at step 8", "learning rate 0.0005", "after step 5", "state.pt"):
        assert words in message
    state = torch.load(tmp_path / "out" / "state.pt", weights_only=True)
    assert state["progressed"]["step"] == 5
    assert all(bool(value.isfinite().all()) for value in state["model"].values())


def test_weights_that_are_not_finite_are_not_saved(
    tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polysem.train import prepare

    def exploding(recipe: Any, model: torch.nn.Module) -> Callable[[], object]:
        calls: list[int] = []

        def clip() -> None:
            calls.append(1)
            if len(calls) == 5:
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad.fill_(float("inf"))

        return clip

    monkeypatch.setattr(prepare, "choose_clip", exploding)
    said = r"not finite after step 5, at the learning rate \S+; .* after step 0, is kept"
    with pytest.raises(NonFiniteError, match=said):
        train(tiny_recipe(), out=tmp_path / "out")
    state = torch.load(tmp_path / "out" / "state.pt", weights_only=True)
    assert state["progressed"]["step"] == 0


def test_float16_weights_are_what_is_measured(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    result = train(tiny_recipe({"save_as": "float16"}), out=tmp_path / "out")
    with safe_open(result.path, framework="pt") as file:
        dtypes = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert torch.float16 in dtypes
    assert "float16" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert load_model(str(result.path)).info["metrics"] == dict(result.metrics)


def test_the_caller_finds_torch_as_it_was(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    handler = signal.getsignal(signal.SIGINT)
    train(tiny_recipe({"threads": threads + 1, "schedule": {"epochs": 1}}), out=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(), out=tmp_path / "b", on_progress=_PressCtrlC(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert signal.getsignal(signal.SIGINT) == handler


WITHOUT_ANALYSIS = """
import sys

sys.modules |= dict.fromkeys({names})  # python takes None for a module that is not there
from polysem.cli import main
sys.argv = ["polysem", "train", *sys.argv[1:]]
main()
"""


def test_training_needs_none_of_the_analysis_packages(
    tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    absent = (
        "transformer_lens", "transformers", "umap", "zarr", "xarray", "open_clip", "datasets",
        "sklearn", "captum", "pytorch_grad_cam", "skimage",
    )  # fmt: skip
    path = tmp_path / "recipe.yaml"
    recipe = recipe_to_dict(tiny_recipe({"schedule": {"epochs": 1}}))
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    code = WITHOUT_ANALYSIS.replace("{names}", str(absent))
    words = [sys.executable, "-c", code, str(path), "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
