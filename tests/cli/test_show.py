"""``polysem show``: summary and pictures as a user gets them, and what it refuses to draw."""

from pathlib import Path

import numpy as np
import pytest
from drawn_run import PlainSource, cnn_activations, random_activations, write_run
from PIL import Image
from shell import polysem

from polysem.cli.show import seen_by_model
from polysem.data.shapes import Shapes
from polysem.data.sources import load_data
from polysem.errors import DataError
from polysem.store.run import Run

N = 20
MLP = "blocks.0.mlp.hook_post"


def show(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run ``polysem show``; return exit code, stdout and stderr."""
    return polysem(capsys, "show", *words)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code, out, err = show(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("polysem: ") and err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    data = Shapes("test", n=N, size=32)
    assert data.labels is not None
    predictions = np.where(np.arange(N) < 5, (data.labels + 1) % 8, data.labels)
    path = tmp_path_factory.mktemp("runs") / "shapes"
    return write_run(
        path, data, random_activations(N), size=(32, 32), predictions=predictions, ranks=4
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        pixels = np.full((40, 60, 3), 40 * i, dtype=np.uint8)
        pixels[:, :10] = pixels[:, 50:] = 255 - 40 * i  # what a centre crop cuts off
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def photo_run(photos: Path, tmp_path: Path) -> Run:
    data = load_data(str(photos))
    return write_run(tmp_path / "run", data, cnn_activations(6), size=(20, 20), crop_pct=1.0)


def test_the_summary_says_what_the_run_holds(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = show(capsys, run.path)
    assert (code, err) == (0, "")
    for expected in (
        "bcos_vit_test.safetensors, weights abababababab, 32 × 32 px",
        "shapes:test?n=20&size=32, 8 classes",
        "20 images in 1.5 s",
        "75.00 % (15 of 20)",
        *run.sites,
    ):
        assert expected in out
    assert "left out" not in out and "note" not in out
    (line,) = (line for line in out.splitlines() if line.startswith(f"│ {MLP}"))
    assert [cell.strip() for cell in line.split("│")][2:5] == ["5", "1", "both"]


def test_the_summary_says_what_went_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = PlainSource("photos", ["[bold]a\x1b[31m", "b", "c", "d"])
    run = write_run(
        tmp_path / "run", source, cnn_activations(2), skipped=[0, 2], status="interrupted",
        notes=["the data has no labels"],
    )  # fmt: skip
    out = show(capsys, run.path)[1]
    assert "photos, no labels" in out
    assert "interrupted after 2 of 4 images" in out
    assert r"2 that cannot be read: '[bold]a\x1b[31m' (truncated), and others" in out
    assert "note      the data has no labels" in out
    assert "accuracy" not in out


def test_pictures_are_written_where_they_are_asked_for(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    unit = (run.path, "--site", MLP, "--unit", 1)
    cases = {
        f"{MLP}-1.png": unit,
        "hook_pooled.png": (run.path, "--site", "hook_pooled"),
        "new/u.svg": (*unit, "--out", "new/u.svg", "--exemplars", 2),
        f"there/{MLP}-1.png": (*unit, "--out", "there"),
        "o.pdf": (run.path, "--out", "o.pdf"),
    }
    for name, words in cases.items():
        code, out, err = show(capsys, *words)
        assert (code, err) == (0, "")
        assert f"wrote {name}" in out
        assert (tmp_path / name).stat().st_size > 1000


def test_bad_words_are_one_sentence(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no run folder at nowhere" in refused(capsys, "nowhere")
    assert "is not a run" in refused(capsys, tmp_path)
    assert "did you mean" in refused(capsys, run.path, "--site", "blocks.0.mlp.hook_pst")
    assert "units are numbered 0 to 4" in refused(capsys, run.path, "--site", MLP, "--unit", 5)
    assert "no unit -1" in refused(capsys, run.path, "--site", MLP, "--unit", -1)
    assert "--unit 3 needs a --site" in refused(capsys, run.path, "--unit", 3)
    assert "a.jpg is no name for a picture" in refused(
        capsys, run.path, "--site", MLP, "--unit", 1, "--out", "a.jpg"
    )
    assert list(tmp_path.iterdir()) == []


def test_pixels_are_those_that_the_model_saw(photo_run: Run) -> None:
    seen = seen_by_model(photo_run)
    for i in range(6):
        image = np.asarray(seen(i))
        assert image.shape == (20, 20, 3)
        assert (image[:, 2:-2] == 40 * i).all()  # the sides are gone


def test_a_limited_run_finds_its_images_again(tmp_path: Path, photos: Path) -> None:
    data = load_data(str(photos), limit=4)
    run = write_run(tmp_path / "run", data, cnn_activations(4), size=(20, 20))
    assert [np.asarray(seen_by_model(run)(i))[10, 10, 0] for i in range(4)] == [
        40 * int(Path(key).stem) for key in data.keys
    ]


def test_changed_images_are_not_shown(
    photo_run: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 60), (1, 2, 3)).save(photos / "3.png")
    words = (photo_run.path, "--site", "layer1.0.hook_post", "--unit", 0, "--out", tmp_path)
    code, out, err = show(capsys, *words)
    assert code == 0
    assert "wrote" in out
    assert err.count("\n") == 1
    assert "does not hold the images that this run was probed on" in err
    assert "--data" in err
    with pytest.raises(LookupError):
        seen_by_model(photo_run)(0)
    with pytest.raises(DataError, match="fingerprint is"):
        seen_by_model(photo_run, str(photos))
    capsys.readouterr()
    assert "fingerprint" in refused(capsys, *words, "--data", photos)


def test_moved_images_are_found_with_data(
    photo_run: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = photos.rename(tmp_path / "moved")
    words = (photo_run.path, "--site", "layer1.0.hook_post", "--out", tmp_path)
    code, _, err = show(capsys, *words)
    assert code == 0
    assert "images cannot be shown: there is no data at" in err
    assert show(capsys, *words, "--data", moved)[::2] == (0, "")
    assert "no data at" in refused(capsys, *words, "--data", tmp_path / "nowhere")
    assert "holds 3 images, and this run was probed on 6" in refused(
        capsys, *words, "--data", "shapes:test?n=3"
    )
