"""Everything that polysem reads from files, each with ways to spoil it and to open it.

A target's `prepare` writes valid files once; a trial copies them, spoils them and opens them. What
may come of it: a `PolysemError` (one sentence), or a result. Anything else is a fault.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from drawn_run import PlainSource, cnn_activations, random_activations, write_run
from mutations import hostile_pickle, spoil_bytes, spoil_json, spoil_text, spoil_tree
from PIL import Image

from polysem import cli
from polysem.data.sources import load_data
from polysem.describe.vocabulary import load_vocabulary
from polysem.errors import ImageError, PolysemError
from polysem.models.checkpoint import save_checkpoint
from polysem.models.load import load_model
from polysem.models.registry import create
from polysem.models.transform import Transform
from polysem.train.recipe import load_recipe, parse_recipe, recipe_to_dict

__all__ = ["TARGETS", "Outcome", "Target", "try_once"]

_VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes
    ----------
    name : str
    prepare : callable
        Writes the valid files into an empty folder.
    trial : callable
        Given a random generator, a copy of that folder and the canary's path: spoils and opens.
    """

    name: str
    prepare: Callable[[Path], None]
    trial: Callable[[random.Random, Path, Path], None]


@dataclass(frozen=True)
class Outcome:
    """What came of one trial.

    Attributes
    ----------
    kind : str
        ``clean`` (one sentence), ``accepted`` or ``traceback``.
    error : str
        Of a traceback: its type and message.
    code_run : bool
        The canary is there.
    outside : tuple of str
        What was written outside of the trial's folder.
    """

    kind: str
    error: str
    code_run: bool
    outside: tuple[str, ...]


def try_once(target: Target, seed: int, valid: Path, root: Path) -> Outcome:
    """Run one trial below `root`, which holds nothing else, and clean up after it."""
    place, canary = root / "a" / "b" / "trial", root / "canary"
    shutil.copytree(valid, place)
    before = _all_but(root, place)
    kind, error = "accepted", ""
    with (
        _within(place),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            target.trial(random.Random(seed), place, canary)
        except PolysemError as found:
            kind = "clean" if str(found).strip() else "traceback"
        except Exception as found:
            kind, error = "traceback", f"{type(found).__name__}: {found}"[:300]
    outside = sorted(_all_but(root, place) - before)
    run = canary.exists() or any(place.rglob("canary")) or Path("/escape").exists()
    outcome = Outcome(kind, error, run, tuple(o for o in outside if not o.endswith("canary")))
    shutil.rmtree(root / "a")
    for path in outside:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if Path(path).is_dir() else os.unlink(path)
    return outcome


@contextlib.contextmanager
def _within(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _all_but(root: Path, place: Path) -> set[str]:
    found = set()
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) != place]
        found |= {os.path.join(folder, name) for name in (*folders, *files)}
    return found


def _network() -> Any:
    torch.manual_seed(0)
    return create("vit_micro_patch8_gap_64", {"num_classes": 3, **_VIT})


def _write_checkpoints(folder: Path) -> None:
    model = _network()
    for suffix in (".safetensors", ".pt"):
        save_checkpoint(
            folder / f"net{suffix}", "vit_micro_patch8_gap_64", {**_VIT, "num_classes": 3},
            model.state_dict(), transform=Transform(size=(16, 16)), classes=("a", "b", "c"),
            recipe={"seed": 1}, metrics={"top1": 0.5}, step=3,
        )  # fmt: skip


def _open_checkpoint(rng: random.Random, folder: Path, canary: Path) -> None:
    file = folder / rng.choice(["net.safetensors", "net.pt"])
    kind = rng.randrange(4)
    if kind == 0:
        file.write_bytes(hostile_pickle(rng, canary, inside={"polysem": "{}"}))
    elif kind == 1 or (kind == 2 and file.suffix == ".pt"):
        file.write_bytes(spoil_bytes(rng, file.read_bytes()))
    elif kind == 2:
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.dumps(spoil_json(rng, json.loads(content[8 : 8 + size]))).encode()
        length = (
            len(header) if rng.random() < 0.8 else rng.choice([0, 2**31, 2**63, len(header) + 1])
        )
        file.write_bytes(length.to_bytes(8, "little") + header + content[8 + size :])
    else:
        described = safetensors.safe_open(str(folder / "net.safetensors"), "pt")
        text = json.dumps(spoil_json(rng, json.loads(described.metadata()["polysem"])))
        tensors = {key: described.get_tensor(key) for key in described.keys()}  # noqa: SIM118
        if file.suffix == ".pt":
            torch.save({"polysem": text, "state_dict": tensors}, file)
        else:
            safetensors.torch.save_file(tensors, file, metadata={"polysem": text})
    load_model(file)


def _write_hugging_face(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        image_size=16, patch_size=8, num_labels=3,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder / "vit")
    processor = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
                 "size": {"height": 16, "width": 16}, "resample": 2}  # fmt: skip
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))


def _open_hugging_face(rng: random.Random, folder: Path, canary: Path) -> None:
    if rng.random() < 0.1:
        (folder / "vit" / "model.safetensors").unlink()
        (folder / "vit" / "pytorch_model.bin").write_bytes(hostile_pickle(rng, canary))
    else:
        spoil_tree(rng, folder / "vit", canary)
    load_model(folder / "vit")


_SOURCE = PlainSource(
    "gone/photos", [f"a/{i}.png" for i in range(30)], np.arange(30) % 3, ("cat", "dog", "owl")
)
_COMMANDS: tuple[tuple[str, ...], ...] = (
    ("show", "RUN"),
    ("show", "RUN", "--out", "out.png"),
    ("show", "RUN", "--site", "SITE", "--unit", "1", "--out", "pictures"),
    ("show", "RUN", "--site", "SITE"),
    ("polysemanticity", "RUN"),
    ("facets", "RUN"),
    ("concepts", "RUN"),
    ("clusters", "RUN"),
    ("report", "RUN", "--out", "site"),
    ("embed", "RUN", "--model", "timm:vit_tiny_patch16_224"),
)


def _write_run(folder: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = random_activations(30) | cnn_activations(30)
    sites = ("blocks.0.attn.hook_z", "blocks.1.mlp.hook_post", "layer1.0.hook_post")
    activations = {site: drawn[site] for site in sites}
    run = write_run(folder / "run", _SOURCE, activations, patterns=True,
                    predictions=rng.integers(3, size=30))  # fmt: skip
    embeddings = rng.normal(size=(30, 6)).astype("f4")
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    from polysem.store.additions import add_arrays
    from polysem.store.schema import EMBEDDINGS, dataset

    arrays = dataset(EMBEDDINGS, {"embedding": embeddings}, {})
    arrays["embedding"].attrs |= {"encoder": "drawn", "fingerprint": "f" * 64}
    add_arrays(run, "embeddings", arrays)


def _open_run(rng: random.Random, folder: Path, canary: Path) -> None:
    for _ in range(rng.choice([1, 1, 2])):
        spoil_tree(rng, folder / "run", canary)
    site = "blocks.1.mlp.hook_post"
    if rng.random() < 0.3:  # a site that the spoilt run itself names
        with contextlib.suppress(Exception):
            sites = json.loads((folder / "run" / "manifest.json").read_text())["sites"]
            site = rng.choice([str(name) for name in sites])
    words = [{"RUN": "run", "SITE": site}.get(word, word) for word in rng.choice(_COMMANDS)]
    command_line(*words)
    _require_no_injection(folder)


#: Names that would run, or break out of where they stand, on a page that does not escape them.
_PAYLOADS = (
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", '" onload="alert(1)',
    "' onclick='alert(1)", "<!-- <script>", "]]>", "{{ 7 * 7 }}", "${alert(1)}", "&lt;b&gt;",
    "../../escape", "\x1b[2J", "a\u2028b", "%0a<b>",
)  # fmt: skip


def _open_names(rng: random.Random, folder: Path, canary: Path) -> None:
    """Give a whole run hostile names, and write its report and pictures."""
    file = folder / "run" / "manifest.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    said["model"] |= {"name": rng.choice(_PAYLOADS), "spec": rng.choice(_PAYLOADS)}
    said["data"] |= {"name": rng.choice(_PAYLOADS), "classes": rng.sample(_PAYLOADS, 3)}
    said["notes"] = [rng.choice(_PAYLOADS)]
    said["skipped"] = [{"key": rng.choice(_PAYLOADS), "reason": rng.choice(_PAYLOADS)}]
    file.write_text(json.dumps(said), encoding="utf-8")
    images = folder / "run" / "images.parquet"
    table = pd.read_parquet(images)
    keys = [f"{rng.choice(_PAYLOADS)}{i}" for i in range(len(table))]
    table.assign(key=keys).to_parquet(images, index=False)
    site = rng.choice(list(said["sites"]))
    ways = (
        ("report", "run", "--out", "site"),
        ("show", "run", "--out", "out.png"),
        ("show", "run", "--site", site, "--unit", "1", "--out", "pictures/a.svg"),
    )
    command_line(*rng.choice((ways[0], *ways)))
    _require_no_injection(folder)


def _require_no_injection(folder: Path) -> None:
    tags = ("<script>alert(1)", "</script><img")
    for page in (*folder.rglob("*.html"), *folder.rglob("*.svg")):
        text = page.read_text(encoding="utf-8")
        # in a drawing these quotes stand in text, where they end nothing
        quotes = (' onload="alert', " onclick='alert") if page.suffix == ".html" else ()
        for payload in (*tags, *quotes):
            assert payload not in text, f"{page.name} holds {payload!r} as it is"


def command_line(*words: str) -> None:
    """Run polysem as from a shell; an exit code of 2 is the sentence that it printed."""
    said = io.StringIO()
    with mock.patch.object(sys, "argv", ["polysem", *words]), contextlib.redirect_stderr(said):
        try:
            cli.main()
        except SystemExit as end:
            if end.code == 2:
                raise PolysemError(said.getvalue()) from None
            if end.code:
                raise AssertionError(f"exit code {end.code}: {said.getvalue()}") from None


def _write_recipe(folder: Path) -> None:
    source = Path(__file__).parents[2] / "analyses" / "recipes" / "cifar10_cpu_bcos_drophead.yaml"
    shutil.copy(source, folder / "recipe.yaml")


def _open_recipe(rng: random.Random, folder: Path, canary: Path) -> None:
    file = folder / "recipe.yaml"
    kind = rng.randrange(3)
    if kind == 0:
        file.write_bytes(spoil_bytes(rng, file.read_bytes()))
    elif kind == 1:
        file.write_text(spoil_text(rng, file.read_text()), encoding="utf-8")
    else:
        plain = recipe_to_dict(load_recipe(file))
        parse_recipe(spoil_json(rng, plain))
        return
    json.dumps(recipe_to_dict(load_recipe(file)))


def _write_vocabularies(folder: Path) -> None:
    (folder / "words.txt").write_text("cat\nDog\n\n cat \nstriped texture\nü\n", encoding="utf-8")
    (folder / "words.csv").write_text('concept,kind\ncat,animal\n"a, b",x\n', encoding="utf-8")


def _open_vocabulary(rng: random.Random, folder: Path, canary: Path) -> None:
    file = folder / rng.choice(["words.txt", "words.csv"])
    content = spoil_bytes(rng, file.read_bytes())
    if rng.random() < 0.3:
        content = content.replace(b"cat", rng.choice([b"\x00", b"\x1b[2J", b'"', b"\r", b"<b>"]))
    if rng.random() < 0.05:
        content += b'"' + b"x" * 200_000
    file.write_bytes(content)
    words = load_vocabulary(file)
    assert words.fingerprint and all(words.concepts)


def _noise(rng: np.random.Generator, side: int = 12) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def _write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number, ending in enumerate(("png", "jpg", "gif", "bmp", "webp", "tif", "ppm")):
        (folder / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        _noise(rng).save(folder / "images" / "ab"[number % 2] / f"{number}.{ending}")


def _open_images(rng: random.Random, folder: Path, canary: Path) -> None:
    files = sorted(path for path in (folder / "images").rglob("*") if path.is_file())
    file = rng.choice(files)
    kind = rng.randrange(6)
    if kind == 0:
        name = rng.choice(
            ["<b>.png", "-rf.png", "a\nb.png", "x" * 200 + ".png", "%s.png", "\x1b.png"]
        )
        file.rename(file.with_name(name))
    elif kind == 1:
        file.rename(file.with_suffix(rng.choice([f.suffix for f in files])))
    elif kind == 2:
        file.write_bytes(hostile_pickle(rng, canary))
    else:
        file.write_bytes(spoil_bytes(rng, file.read_bytes()))
    _read_some("images")


def _read_some(spec: str) -> None:
    """Read the first images of a data set, its fingerprint and its labels."""
    data = load_data(spec)
    assert len(data.fingerprint) == 64
    for index in range(min(9, len(data))):
        with contextlib.suppress(ImageError):
            assert data.read(index).mode == "RGB"


def _write_parquet(folder: Path) -> None:
    import datasets

    rng = np.random.default_rng(0)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"image": [_noise(rng) for _ in range(6)], "label": [0, 1] * 3}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "t.parquet")


def _open_parquet(rng: random.Random, folder: Path, canary: Path) -> None:
    import pyarrow.parquet as pq

    file = folder / "t.parquet"
    if rng.random() < 0.5:
        file.write_bytes(spoil_bytes(rng, file.read_bytes()))
    else:
        table = pq.read_table(file)
        said = json.loads(table.schema.metadata[b"huggingface"])
        text = json.dumps(spoil_json(rng, said))
        if rng.random() < 0.2:
            text = spoil_bytes(rng, text.encode()).decode(errors="replace")
        pq.write_table(table.replace_schema_metadata({"huggingface": text}), file)
    _read_some("t.parquet")


def _write_medmnist(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez_compressed(
        folder / "m.npz", train_images=rng.integers(0, 256, (6, 8, 8), dtype=np.uint8),
        train_labels=rng.integers(0, 3, (6, 1)),
    )  # fmt: skip


def _open_medmnist(rng: random.Random, folder: Path, canary: Path) -> None:
    import zipfile

    file = folder / "m.npz"
    if rng.random() < 0.3:
        file.write_bytes(spoil_bytes(rng, file.read_bytes()))
    else:
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(list(members))
        kind = rng.randrange(3)
        if kind == 0:
            members[name] = hostile_pickle(rng, canary)
        elif kind == 1:
            members[name] = spoil_bytes(rng, members[name])
        else:
            shape = rng.choice([b"(6,", b"(0,", b"(-6", b"(99", b"(9**9,", b"('a',", b"(6.0,"])
            members[name] = members[name].replace(b"(6,", shape)
        with zipfile.ZipFile(file, "w") as archive:
            for key, content in members.items():
                archive.writestr(key, content)
    _read_some(f"m.npz?split=train{rng.choice(['', '&label=none'])}")


def _write_cifar(folder: Path) -> None:
    import pickle

    root = folder / "cifar-10-batches-py"
    root.mkdir()
    rng = np.random.default_rng(0)
    batch = {b"data": rng.integers(0, 256, (3, 3072), dtype=np.uint8), b"labels": [0, 1, 2]}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (root / name).write_bytes(pickle.dumps(batch))
    names = {b"label_names": [b"c%d" % i for i in range(10)]}
    (root / "batches.meta").write_bytes(pickle.dumps(names))


def _open_cifar(rng: random.Random, folder: Path, canary: Path) -> None:
    root = folder / "cifar-10-batches-py"
    file = root / rng.choice(["test_batch", "batches.meta"])
    if rng.random() < 0.3:
        file.write_bytes(hostile_pickle(rng, canary, inside={"labels": [1], "label_names": ["a"]}))
    else:
        file.write_bytes(spoil_bytes(rng, file.read_bytes()))
    if rng.random() < 0.3:
        with tarfile.open("c.tar.gz", "w:gz") as archive:
            archive.add(root, root.name)
        packed = Path("c.tar.gz")
        if rng.random() < 0.5:
            packed.write_bytes(spoil_bytes(rng, packed.read_bytes()))
        _read_some("cifar:c.tar.gz?split=test")
    else:
        _read_some(f"{root.name}?split=test")


def _write_ham10000(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"lesion_id": f"HAM_{i // 2:07d}", "image_id": f"ISIC_{i:07d}", "dx": ("nv", "mel")[i % 2],
         "dx_type": "histo", "age": 50.0, "sex": "male", "localization": "back"}
        for i in range(8)
    ]  # fmt: skip
    (folder / "ham").mkdir()
    pd.DataFrame(rows).to_csv(folder / "ham" / "HAM10000_metadata.csv", index=False)
    for row in rows:
        _noise(rng).save(folder / "ham" / f"{row['image_id']}.jpg")


def _open_ham10000(rng: random.Random, folder: Path, canary: Path) -> None:
    file = folder / "ham" / "HAM10000_metadata.csv"
    text = file.read_text()
    if rng.random() < 0.5:
        file.write_bytes(spoil_bytes(rng, text.encode()))
    else:
        words = ["../../escape", "", "nan", '"', "\x00", "nv,nv", "<b>", "9" * 400]
        old = rng.choice(["ISIC_0000003", "HAM_0000001", "mel", "image_id", "50.0", "dx"])
        file.write_text(text.replace(old, rng.choice(words), rng.choice([1, -1])))
    _read_some(f"ham10000:ham?split={rng.choice(['all', 'train', 'test'])}")


TARGETS = (
    Target("checkpoint", _write_checkpoints, _open_checkpoint),
    Target("hugging_face", _write_hugging_face, _open_hugging_face),
    Target("run", _write_run, _open_run),
    Target("names", _write_run, _open_names),
    Target("recipe", _write_recipe, _open_recipe),
    Target("vocabulary", _write_vocabularies, _open_vocabulary),
    Target("images", _write_images, _open_images),
    Target("parquet", _write_parquet, _open_parquet),
    Target("medmnist", _write_medmnist, _open_medmnist),
    Target("cifar", _write_cifar, _open_cifar),
    Target("ham10000", _write_ham10000, _open_ham10000),
)
