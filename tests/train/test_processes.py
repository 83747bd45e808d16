"""Two processes on the CPU (gloo) train what one process trains."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from small_trainings import nearly_the_same

from polysem.errors import SpecError
from polysem.models.checkpoint import read_checkpoint
from polysem.train.loop import train
from polysem.train.processes import is_first_process, processes
from polysem.train.recipe import Recipe, recipe_to_dict


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _two_processes(recipe: Path, out: Path) -> list[str]:
    """Train as a launcher does, two processes that know of each other; return what they print."""
    port = str(_free_port())
    words = [sys.executable, "-m", "polysem", "train", recipe, "--out", out, "--device", "cpu"]
    started = [
        subprocess.Popen(
            [str(word) for word in words],
            env={**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank),
                 "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = []
    for process in started:
        out_text, err_text = process.communicate(timeout=300)
        assert process.returncode == 0, err_text
        said.append(out_text)
    return said


def test_two_processes_train_what_one_trains(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        {"optimiser": {"lr": 1e-4}, "schedule": {"epochs": 2}, "threads": 1, "accumulate": 2}
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_to_dict(recipe)), encoding="utf-8")
    first, second = _two_processes(path, tmp_path / "two")
    assert "wrote" in first
    assert "wrote" not in second
    train(recipe, out=tmp_path / "one", device="cpu")
    one, two = (
        read_checkpoint(tmp_path / name / "model.safetensors").state_dict for name in ("one", "two")
    )
    # sums in another order, no more: the images and what is done to them are the same
    assert nearly_the_same(one, two)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for alone, together in zip(*logs, strict=True):
        assert alone["train_loss"] == pytest.approx(together["train_loss"], rel=1e-4)
        assert alone["test_loss"] == pytest.approx(together["test_loss"], rel=1e-4)
    assert "2 processes of 1 thread" in (tmp_path / "two" / "README.md").read_text("utf-8")


def test_alone_it_takes_the_device_it_was_given_and_leaves_accelerate_as_found() -> None:
    from accelerate.state import is_initialized

    with processes("cpu") as group:
        assert (group.count, group.number, group.first) == (1, 0, True)
        assert group.device == torch.device("cpu")
        values = torch.arange(3.0)
        assert group.sum(values) is values
        assert group.join(values) is values
        assert group.collect(values) == [values]
        group.wait()
    assert not is_initialized()
    assert is_first_process()


def test_one_of_several_cannot_be_given_a_gpu_of_its_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match="a GPU of its own"), processes("cuda:1"):
        pass
