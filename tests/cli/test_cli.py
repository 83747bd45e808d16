"""The command line as its user meets it: help, one-sentence errors, exit codes."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from shell import polysem as run

from polysem import cli
from polysem.models.checkpoint import save_checkpoint
from polysem.models.load import load_model

ARCH = "vit_micro_patch8_gap_64"
ARGS = {"img_size": 32, "depth": 1, "num_classes": 3}


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Return the one sentence that polysem answers bad input with."""
    code, _, err = run(capsys, *words)
    assert code == 2
    assert err.startswith("polysem: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(ARCH, **ARGS)
    path = tmp_path / "ckpt.pt"
    transform = load_model(f"timm:{ARCH}").transform
    values = transform.to_dict() | {"size": [32, 32]}
    save_checkpoint(
        path, ARCH, ARGS, model.state_dict(), transform=type(transform).from_dict(values),
        classes=("a", "b", "c"),
    )  # fmt: skip
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for label in "abc":
        (folder / label).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def test_help_is_there_before_torch() -> None:
    code = (
        "import sys; sys.argv = ['polysem', '--help']\n"
        "from polysem.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("probe", "show", "localise", "sanity", "train", "demo", "bench"):
        assert command in done.stdout


def commands() -> list[list[str]]:
    """Return the words of every command, those of groups included."""
    found: list[list[str]] = []
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {})
        found += [[name, each] for each in inner] or [[name]]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_gives_an_example(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert f"Example: polysem {' '.join(command)}" in " ".join(out.split())


def test_probe_then_summary(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("probe", "--model", checkpoint, "--data", photos, "--out", tmp_path / "run")
    code, out, err = run(capsys, *words, "--batch-size", 4)
    assert (code, err) == (0, "")
    assert "9 images" in out
    assert "already holds a run" in refused(capsys, *words)
    assert run(capsys, *words, "--overwrite", "--limit", 5)[0] == 0
    assert run(capsys, "show", tmp_path / "run")[0] == 0


def test_bad_models_are_named(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def probe(model: object, *more: object) -> str:
        return refused(
            capsys, "probe", "--model", model, "--data", photos, "--out", tmp_path / "r", *more
        )

    assert "missing.pt" in probe(tmp_path / "missing.pt")
    assert "did you mean" in probe("timm:vit_tinny_patch16_224")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(checkpoint.read_bytes()[:-500])
    assert "broken.pt" in probe(broken)
    state = load_model(checkpoint).model.state_dict()
    torch.save({k: v for k, v in state.items() if "fc1" not in k}, tmp_path / "part.pt")
    assert "blocks.0.mlp.fc1" in probe(tmp_path / "part.pt", "--arch", ARCH)
    state = load_model("timm:resnet20_32", num_classes=3).model.state_dict()
    state["fc.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    assert "fc.weight" in probe(tmp_path / "nan.pt", "--arch", "resnet20_32")
    assert not (tmp_path / "r").exists()


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("executed", "w")


def test_a_checkpoint_that_would_run_code_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"state_dict": _Evil()}, buffer)
    (tmp_path / "evil.pt").write_bytes(buffer.getvalue())
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Evil()))
    for name in ("evil.pt", "evil.pth"):
        refused(capsys, "probe", "--model", name, "--data", photos, "--out", "r")
    assert not (tmp_path / "executed").exists()


def test_bad_data_and_options_are_named(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def probe(data: object, *more: object) -> str:
        return refused(
            capsys, "probe", "--model", checkpoint, "--data", data, "--out", tmp_path / "r", *more
        )

    (tmp_path / "empty").mkdir()
    assert "empty" in probe(tmp_path / "empty")
    assert "nowhere" in probe(tmp_path / "nowhere")
    assert "did you mean" in probe("shaps:test")
    assert "no site" in probe(photos, "--sites", "blocks.9.*")
    assert "device" in probe(photos, "--device", "gpu7")
    assert not (tmp_path / "r").exists()


def test_wrong_words_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "probe", "--modle", "x")
    assert code == 2
    assert "Traceback" not in err
    code, _, err = run(capsys, "probe", "--model", "x", "--data", "y", "--out", "z",
                       "--precision", "fp13")  # fmt: skip
    assert code == 2
    assert "bf16" in err
    assert "no run folder" in refused(capsys, "show", "nowhere")
