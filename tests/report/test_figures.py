"""Contact sheets of every kind of unit: all is said, nothing overlaps, nothing is made up."""

from pathlib import Path

import numpy as np
import pytest
from drawn_run import (
    Activations,
    PlainSource,
    cnn_activations,
    random_activations,
    write_run,
)  # fmt: skip
from matplotlib import _pylab_helpers
from PIL import Image
from written import check_legible, texts

from polysem.errors import SpecError
from polysem.report.figures import contact_sheet, striking_units
from polysem.store.run import Run

N = 40
MLP, HEADS = "blocks.0.mlp.hook_post", "blocks.0.attn.hook_z"
RECTIFIED = "blocks.1.mlp.hook_post"
LABELS = np.arange(N) % 5
CLASSES = ("ant", "bee", "cat", "dog", "eel")


def picture(image: int) -> Image.Image:
    pixels = np.random.default_rng(image).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def gone(image: int) -> Image.Image:
    raise LookupError(image)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    source = PlainSource("photos", [f"{i}.png" for i in range(N)], LABELS, CLASSES)
    predictions = np.where(np.arange(N) % 4 == 0, 4, LABELS)
    return write_run(
        tmp_path_factory.mktemp("runs") / "a", source, random_activations(N), ranks=12,
        predictions=predictions, size=(32, 32),
    )  # fmt: skip


def test_a_signed_unit_shows_both_tails(run: Run) -> None:
    figure = contact_sheet(run, MLP, 1, picture)
    written = check_legible(figure)
    for expected in (
        f"{MLP} · unit 1",
        "bcos_vit_test, 40 images of photos",
        "Highest",
        "maximum over patches, 12 of 40 images",
        "Lowest",
        "minimum over patches, 12 of 40 images",
        "Distribution over 40 images",
        "Mean by class",
    ):
        assert expected in written
    assert [t for t in written if t in map(str, range(1, 13))].count("12") >= 2  # ranks
    assert len(figure.axes[0].get_images()) > 24  # pictures, and veils over them


def test_exemplars_carry_value_class_and_mark(run: Run) -> None:
    values = random_activations(N)["hook_pooled"].values[:, 3]
    written = texts(contact_sheet(run, "hook_pooled", 3, picture, n_exemplars=8))
    for image in np.argsort(-values)[:8]:
        assert f"{abs(values[image]):.3g}"[:4] in " ".join(written)
        label = CLASSES[LABELS[image]]
        wrong = image % 4 == 0 and label != "eel"
        assert (label if wrong else f"✓ {label}") in written
        if wrong:
            assert "✗ eel" in written
    assert "8 of 40 images" in written
    assert not any("Outlined" in text for text in written)  # there is no map


def test_a_head_is_called_a_head(run: Run) -> None:
    figure = contact_sheet(run, HEADS, 2, picture)
    written = check_legible(figure)
    assert f"{HEADS} · head 2" in written
    assert "length of the head's output, maximum over patches, 12 of 40 images" in written
    assert "Lowest" not in written


def test_a_dead_unit_says_so(run: Run) -> None:
    figure = contact_sheet(run, MLP, 2, gone)
    assert {"Dead", "the same value on every image: 0.250"} <= set(check_legible(figure))
    assert not figure.axes[0].get_images()


def test_fewer_exemplars_than_ranks_are_explained(run: Run) -> None:
    written = texts(contact_sheet(run, RECTIFIED, 3, picture))
    assert any("3 of 40 images; the unit is above 0 on no other" in text for text in written)
    some = texts(contact_sheet(run, RECTIFIED, 3, picture, n_exemplars=2))
    assert "maximum over patches, 2 of 40 images" in some


def test_a_unit_that_never_fires_but_is_not_dead(tmp_path: Path) -> None:
    values = -np.random.default_rng(0).gamma(1.0, size=(N, 2, 2, 3))
    source = PlainSource("photos", [str(i) for i in range(N)])
    run = write_run(tmp_path / "a", source, {RECTIFIED: Activations(values, signed=False)})
    figure = contact_sheet(run, RECTIFIED, 1, gone)
    assert "no image: the unit is above 0 on none" in check_legible(figure)


def test_images_that_are_gone_are_boxes_with_keys(run: Run) -> None:
    figure = contact_sheet(run, MLP, 1, lambda i: gone(i) if i % 2 else picture(i))
    check_legible(figure)
    values = random_activations(N)[MLP].values[:, 1].max((1, 2))
    odd = [image for image in np.argsort(-values)[:12] if image % 2]
    written = texts(figure)
    assert {f"{image}.png" for image in odd} <= set(written)
    assert "not available" in written


def test_unlabelled_cnn_with_oblong_maps(tmp_path: Path) -> None:
    source = PlainSource("a folder", [f"holiday/IMG_{i:04d}.JPG" for i in range(N)])
    run = write_run(tmp_path / "a", source, cnn_activations(N), size=(48, 96), status="interrupted")
    for site in run.sites:
        figure = contact_sheet(run, site, 1, gone)
        written = check_legible(figure)
        assert "Mean by class" not in written
        assert any(text.endswith("(interrupted)") for text in written)
        assert any("holiday/IMG" in text for text in written)


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    names = (
        "$a_b$", "<script>alert('x')</script>", "日本語のとても長い名前", "x" * 200,
        "two\nlines\t\x00", "\u202eright to left", "", r"x_{1}^2 \frac", "100 % & more",
    )  # fmt: skip
    labels = np.arange(N) % len(names)
    source = PlainSource("$bad_{name}$", [f"k$_{i}$\n" for i in range(N)], labels, names)
    run = write_run(tmp_path / "a", source, random_activations(N), predictions=labels[::-1].copy())
    figure = contact_sheet(run, MLP, 0, gone)
    written = check_legible(figure)
    assert "$a_b$" in written
    assert "class 6" in written
    assert any(text.endswith("$bad_{name}$") for text in written)


def test_many_classes_are_cut_in_the_middle(tmp_path: Path) -> None:
    labels = np.arange(N) % 37
    source = PlainSource("photos", [str(i) for i in range(N)], labels)
    run = write_run(tmp_path / "a", source, {MLP: random_activations(N)[MLP]})
    figure = contact_sheet(run, MLP, 0, picture)
    assert "19 more" in check_legible(figure)


def test_a_sample_of_the_images_is_called_one(run: Run) -> None:
    run = Run(run.path, {**run.manifest, "n_images": 5000})
    assert "Distribution over a sample of 40 images" in texts(contact_sheet(run, MLP, 0, gone))


def test_no_such_unit_or_site(run: Run) -> None:
    with pytest.raises(SpecError, match="has no head 3: its units are numbered 0 to 2"):
        contact_sheet(run, HEADS, 3, picture)
    with pytest.raises(SpecError, match="did you mean"):
        contact_sheet(run, "hook_poled", 0, picture)


def test_pyplot_knows_nothing_of_it(run: Run) -> None:
    contact_sheet(run, MLP, 0, gone)
    assert not _pylab_helpers.Gcf.figs


def test_striking_units_are_alive_and_peaked(run: Run) -> None:
    values = random_activations(N)[RECTIFIED].values.max((2, 3))
    z = (values - values.mean(0)) / values.std(0).clip(1e-9)
    alive = [unit for unit in range(5) if unit != 2]
    expected = sorted(alive, key=lambda unit: -(z[:, unit] ** 4).mean())
    assert striking_units(run, RECTIFIED) == expected
    assert striking_units(run, RECTIFIED, 2) == expected[:2]
