"""Checkpoints say what they are, survive the round trip, and never run anything."""

from __future__ import annotations

import json
import os
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from polysem.errors import CheckpointError, MissingError
from polysem.models.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from polysem.models.transform import Transform

TRANSFORM = Transform(size=(5, 7), crop_pct=0.5, interpolation="bilinear", mean=(0.1, 0.2, 0.3))
SUFFIXES = [".pt", ".pth", ".safetensors"]


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "matrix": torch.randn(3, 5, generator=generator),
        "vector": torch.randn(7, generator=generator),
        "wide": torch.randn(2, 3, generator=generator, dtype=torch.float64),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "count": torch.tensor(2**40 + 1),
        "mask": torch.tensor([[True], [False]]),
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def save(path: Path, **options: Any) -> None:
    save_checkpoint(path, "net", {"depth": 2}, tensors(), transform=TRANSFORM, **options)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep/er/a{suffix}"
    save(path, classes=("a", "ü"), recipe={"lr": 1e-3}, metrics={"top1": 0.5}, step=9)
    read = read_checkpoint(path)
    assert same(read.state_dict, tensors())
    assert read == Checkpoint(
        model_name="net",
        model_args={"depth": 2},
        state_dict=read.state_dict,
        transform=TRANSFORM,
        classes=("a", "ü"),
        recipe={"lr": 1e-3},
        metrics={"top1": 0.5},
        step=9,
        dtype=None,
    )
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_formats_hold_the_same(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        save(tmp_path / f"a{suffix}", step=3)
    a, b, c = (read_checkpoint(tmp_path / f"a{suffix}") for suffix in SUFFIXES)
    assert same(a.state_dict, b.state_dict) and same(b.state_dict, c.state_dict)
    described = json.loads(torch.load(tmp_path / "a.pt", weights_only=True)["polysem"])
    with safetensors.safe_open(str(tmp_path / "a.safetensors"), "pt") as file:
        assert json.loads(file.metadata()["polysem"]) == described
    assert described["model_name"] == "net" and described["transform"]["size"] == [5, 7]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_writing_twice_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in "ab":
        save(tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_shared_and_strided_tensors_are_written(tmp_path: Path) -> None:
    base = torch.arange(15.0).view(3, 5)
    state = {"a": base, "b": base, "c": base.T, "d": base[1:, ::2]}
    for suffix in SUFFIXES:
        path = tmp_path / f"a{suffix}"
        save_checkpoint(path, "net", {}, state, transform=TRANSFORM)
        assert same(dict(sorted(read_checkpoint(path).state_dict.items())), state)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_float16_rounds_matrices_only(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save(path, dtype="float16")
    read, was = read_checkpoint(path), tensors()
    assert read.dtype == "float16"
    for key in ("matrix", "wide"):
        assert read.state_dict[key].dtype == torch.float32
        assert torch.equal(read.state_dict[key], was[key].half().float())
    for key in ("vector", "scalar", "count", "mask"):
        assert read.state_dict[key].dtype == was[key].dtype
        assert torch.equal(read.state_dict[key], was[key])
    # writing what was read, again in float16, loses nothing more
    save_checkpoint(path, "net", {}, read.state_dict, transform=TRANSFORM, dtype="float16")
    assert same(read_checkpoint(path).state_dict, read.state_dict)


def test_float16_is_refused_where_it_overflows(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"big reaches 7e\+04, more than float16"):
        save_checkpoint(
            tmp_path / "a.pt",
            "net",
            {},
            {"big": torch.full((2, 2), 7e4)},
            transform=TRANSFORM,
            dtype="float16",
        )
    assert not list(tmp_path.iterdir())


def rewriting(examples: int) -> settings:
    """Examples that write the same file anew, each over the last."""
    again = [HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, deadline=None, suppress_health_check=again)


names = st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


def as_json(value: Any) -> Any:
    """Infinity is not JSON and comes back as None; everything else as it went."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return None if value in (float("inf"), -float("inf")) else value


@rewriting(30)
@given(
    recipe=st.dictionaries(names, values, max_size=3),
    classes=st.none() | st.lists(names, max_size=3),
    step=st.none() | st.integers(0),
    suffix=st.sampled_from(SUFFIXES),
)
def test_any_description_survives(
    tmp_path: Path, recipe: dict[str, Any], classes: list[str] | None, step: int | None, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    state = {"w": torch.ones(2, 3)}
    save_checkpoint(
        path, "net", recipe, state, transform=TRANSFORM, classes=classes, recipe=recipe, step=step
    )
    read = read_checkpoint(path)
    assert read.recipe == read.model_args == as_json(recipe)
    assert read.classes == (None if classes is None else tuple(classes))
    assert read.step == step


def test_a_number_that_json_cannot_say_is_missing(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", metrics={"top1": float("nan"), "per_class": [0.5, float("inf")]})
    assert read_checkpoint(tmp_path / "a.pt").metrics == {"top1": None, "per_class": [0.5, None]}


@pytest.mark.parametrize("bad", [{"f": torch.relu}, {"t": torch.ones(1)}, {3: "number as key"}])
def test_a_description_must_be_json(tmp_path: Path, bad: dict[Any, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"description for .*a\.pt is not JSON"):
        save(tmp_path / "a.pt", recipe=bad)
    assert not list(tmp_path.iterdir())


def test_the_suffix_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must end in one of \.pt, \.pth, \.safetensors"):
        save(tmp_path / "a.bin")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save(path, step=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))  # as a full disk does
    try:
        with pytest.raises(CheckpointError, match=r"a\.\w+ cannot be written: File too large"):
            save(path, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_checkpoint(path).step == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"a\.pt cannot be written: Is a directory"):
        save(tmp_path / "a.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


# What cannot be read


def reading_fails(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    save(tmp_path / "last.pt")
    with pytest.raises(MissingError, match=r"no file .*lost\.pt; did you mean 'last\.pt'"):
        read_checkpoint(tmp_path / "lost.pt")
    with pytest.raises(MissingError, match="no file"):
        read_checkpoint(tmp_path / "no/such/folder.pt")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder where a weights file was expected"):
        read_checkpoint(tmp_path)


def test_a_device_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no ordinary file"):
        read_checkpoint("/dev/null")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.touch()
    with pytest.raises(CheckpointError, match="is empty"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_cut_is_noticed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save(path)
    whole = path.read_bytes()
    for length in range(1, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"damaged|not a whole safetensors|neither"):
            read_checkpoint(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save(path)
    whole = bytearray(path.read_bytes())
    where = whole.find(tensors()["matrix"].numpy().tobytes())
    whole[where + 5] ^= 16
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="its tensors are not those that were written"):
        read_checkpoint(path)


@rewriting(60)
@given(data=st.data(), suffix=st.sampled_from(SUFFIXES))
def test_damage_gives_one_kind_of_error(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save(path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        read = read_checkpoint(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:  # padding or a byte changed into itself
        assert same(dict(sorted(read.state_dict.items())), dict(sorted(tensors().items())))


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0 a picture", b"epoch,loss\n1,2\n", b"x"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_foreign_files(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"neither a PyTorch file|not a whole safetensors"):
        read_checkpoint(path)


def test_foreign_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
    with pytest.raises(CheckpointError, match=r"zip archive, but not one that torch\.save wrote"):
        read_checkpoint(path)


def test_weights_of_others_are_not_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(tensors(), path)
    with pytest.raises(CheckpointError, match=r"not written by polysem.*arch=NAME"):
        read_checkpoint(path)


class Malicious:
    """Unpickling this creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "disguised"])
def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path: Path, kind: str) -> None:
    target, path = tmp_path / "pwned", tmp_path / "a.pt"
    content = {"w": torch.ones(2), "x": Malicious(target)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Malicious(target)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "disguised":
        path = path.rename(tmp_path / "a.pth")
    reading_fails(path, r"refused and was not run: .*torch\.save\(model\.state_dict\(\), PATH\)")
    assert not target.exists()


def test_the_refused_object_is_named(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3), tmp_path / "a.pt")
    reading_fails(tmp_path / "a.pt", r"the Python object torch\.nn\.modules\.linear\.Linear")


def test_a_program_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", "")
        archive.writestr("a/constants.pkl", "")
    reading_fails(tmp_path / "a.pt", "it is a TorchScript program")


def test_an_archive_that_inflates_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert (tmp_path / "bomb.pt").stat().st_size < 10**5
    reading_fails(tmp_path / "bomb.pt", "compressed archive that would grow to 4,000,")


def test_a_tensor_that_repeats_itself_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "a.pt")
    reading_fails(tmp_path / "a.pt", "'w' is not a plain dense tensor")


@pytest.mark.parametrize("entry", [3, "text", None, [1.0], {"deep": torch.ones(1)}])
def test_what_is_no_tensor_is_named(tmp_path: Path, entry: Any) -> None:
    torch.save({"w": torch.ones(2), "e": entry}, tmp_path / "a.pt")
    reading_fails(tmp_path / "a.pt", "entry 'e' is a")


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.eye(9).to_sparse()}, tmp_path / "a.pt")
    reading_fails(tmp_path / "a.pt", "'w' is not a plain dense tensor")


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], "text", 3, {}])
def test_what_is_no_dict_of_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    reading_fails(tmp_path / "a.pt", r"where a dict of named tensors was expected|no tensors")


@pytest.mark.parametrize(
    "description",
    ["", "[]", "{}", '{"version": 1}', '{"version": "x"}', '{"version": null}', "{" * 999],
)
def test_a_damaged_description(tmp_path: Path, description: str) -> None:
    torch.save({"polysem": description, "state_dict": {"w": torch.ones(1)}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"description of the model is damaged|not those"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_checkpoint_from_the_future(tmp_path: Path) -> None:
    torch.save(
        {"polysem": '{"version": 99}', "state_dict": {"w": torch.ones(1)}}, tmp_path / "a.pt"
    )
    with pytest.raises(CheckpointError, match=r"newer polysem \(format 99.*update polysem"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_name", 3), ("model_args", [1]), ("transform", None), ("classes", "abc"),
        ("classes", [1, 2]), ("recipe", "x"), ("metrics", []), ("step", True), ("step", 1e999),
        ("dtype", "float8"), ("version", 1e999), ("version", "1"), ("version", None),
        ("transform", {"size": ["a", "b"]}), ("transform", {"size": [4, 4], "std": 1}),
    ],
)  # fmt: skip
def test_a_description_of_other_types_is_damaged(tmp_path: Path, key: str, value: Any) -> None:
    save(tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    said = {**json.loads(content["polysem"]), key: value}
    torch.save({**content, "polysem": json.dumps(said)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="description of the model is damaged"):
        read_checkpoint(tmp_path / "a.pt")
