"""Every form of model spec gives a model ready to study, or one sentence that says why not."""

from __future__ import annotations

import argparse
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from polysem.errors import CheckpointError, MissingError, NonFiniteError, PolysemError, SpecError
from polysem.models.bcos import BcosConv2d
from polysem.models.checkpoint import save_checkpoint
from polysem.models.load import LoadedModel, load_model
from polysem.models.transform import Transform
from polysem.models.weights import state_digest

ARCH = "resnet20_32"


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(5)
    return timm.create_model(ARCH, num_classes=7).eval()


def batch(channels: int = 3) -> Tensor:
    return torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(1))


def fails(kind: type[PolysemError], message: str, *args: Any, **options: Any) -> None:
    with pytest.raises(kind, match=message) as caught:
        load_model(*args, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def same_logits(loaded: LoadedModel, model: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(loaded.model(batch()), model(batch()))


# Names of timm's


def test_random_weights_follow_the_seed() -> None:
    torch.manual_seed(3)
    a = load_model(f"timm:{ARCH}", num_classes=7)
    torch.manual_seed(3)
    b = load_model(f"timm:{ARCH}", num_classes=7)
    c = load_model(f"timm:{ARCH}", num_classes=7)
    assert a.sha256 == b.sha256 != c.sha256
    assert a.name == ARCH and a.spec == f"timm:{ARCH}" and a.classes is None and a.info == {}
    assert not any(module.training for module in a.model.modules())
    assert a.model(batch()).shape == (2, 7)


def test_weights_for_a_timm_name(tmp_path: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), tmp_path / "a.pth")
    loaded = load_model(f"timm:{ARCH}", weights=tmp_path / "a.pth")
    assert same_logits(loaded, net)
    assert loaded.sha256 == state_digest(net.state_dict())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnet20_23", r"no model called 'resnet20_23'; did you mean 'resnet20_32'"),
        ("timm:", r"no model called ''"),
        ("timm:hf-hub:org/name", r"no model called 'hf-hub:org/name'"),
        (
            "timm:resnet18.a3_in2k",
            r"no pretrained weights tagged 'a3_in2k'; did you mean .*a3_in1k",
        ),
        (f"timm:{ARCH}.best", r"no pretrained weights tagged 'best'"),
        (f"timm:{ARCH}?pretrained", r"timm has no pretrained weights for resnet20_32"),
        (f"timm:{ARCH}?trained", r"only '\?pretrained' is understood, not '\?trained'"),
        (
            "resnet20_32",
            r"is no model spec, which is timm:NAME .*; did you mean 'timm:resnet20_32'",
        ),
        ("bcos:resnet18", r"needs its weights file: load_model\('bcos:resnet18', weights=FILE\)"),
        ("", r"'' is no model spec"),
    ],
)
def test_specs_that_are_not_understood(spec: str, message: str) -> None:
    fails(SpecError, message, spec)


def test_arguments_that_do_not_go_with_the_spec(tmp_path: Path) -> None:
    fails(SpecError, "arch belongs to a weights file", f"timm:{ARCH}", arch=ARCH)
    fails(SpecError, "weights belongs to timm:NAME and bcos:NAME", "a.pt", weights="b.pt")
    fails(SpecError, "brings its own weights", "timm:resnet18?pretrained", weights="b.pt")
    fails(SpecError, "arch belongs to a weights file", tmp_path, arch=ARCH)
    fails(SpecError, "num_classes must not be negative", f"timm:{ARCH}", num_classes=-3)
    fails(SpecError, "has no model|no model spec", "~nobody")


def test_devices() -> None:
    assert next(load_model(f"timm:{ARCH}", device=torch.device("cpu")).model.parameters()).is_cpu
    fails(SpecError, "device 'gpu9' cannot be used", f"timm:{ARCH}", device="gpu9")
    fails(SpecError, "device 'cuda:99' cannot be used here", f"timm:{ARCH}", device="cuda:99")


def test_a_failing_download_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, *, pretrained: bool) -> nn.Module:
        assert pretrained
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr(timm, "create_model", offline)
    for spec in ("timm:resnet18?pretrained", "timm:resnet18.a1_in1k?pretrained", "hf-hub:org/n"):
        fails(MissingError, r"could not be downloaded \(Name or service not known\)", spec)


def test_a_downloaded_model_brings_its_labels(
    monkeypatch: pytest.MonkeyPatch, net: nn.Module
) -> None:
    monkeypatch.setitem(net.pretrained_cfg, "label_names", list("abcdefg"))
    monkeypatch.setattr(timm, "create_model", lambda name, *, pretrained: net)
    loaded = load_model("hf-hub:org/name")
    assert loaded.classes == tuple("abcdefg") and loaded.name == ARCH
    fails(CheckpointError, "has 7 classes, not the 3 asked for", "hf-hub:org/name", num_classes=3)


# Weights files


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_state_dicts(tmp_path: Path, net: nn.Module, wrap: str, prefix: str) -> None:
    state: dict[str, Any] = {prefix + key: value for key, value in net.state_dict().items()}
    content = state if wrap == "bare" else {wrap: state, "epoch": 3, "optimizer": {"lr": [1.0]}}
    torch.save(content, tmp_path / "a.pth")
    loaded = load_model(tmp_path / "a.pth", arch=ARCH)
    assert same_logits(loaded, net) and loaded.name == ARCH
    assert loaded.sha256 == state_digest(net.state_dict())
    assert load_model(tmp_path / "a.pth", arch=ARCH, num_classes=7).sha256 == loaded.sha256


def test_timms_training_checkpoints_name_their_model(tmp_path: Path, net: nn.Module) -> None:
    content = {
        "epoch": 9,
        "arch": ARCH,
        "state_dict": net.state_dict(),
        "args": argparse.Namespace(lr=0.1, opt="sgd"),
        "metric": 71.5,
    }
    torch.save(content, tmp_path / "last.pth")
    assert same_logits(load_model(tmp_path / "last.pth"), net)


def test_half_precision_weights_load_as_single(tmp_path: Path, net: nn.Module) -> None:
    halves = {k: v.bfloat16() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    torch.save(halves, tmp_path / "a.pth")
    loaded = load_model(tmp_path / "a.pth", arch=ARCH)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert torch.equal(loaded.model.conv1.weight, net.conv1.weight.bfloat16().float())


def test_counters_of_old_files_may_be_missing(tmp_path: Path, net: nn.Module) -> None:
    old = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "a.pth")
    assert same_logits(load_model(tmp_path / "a.pth", arch=ARCH), net)


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), tmp_path / "a.pth")
    before = torch.get_rng_state()
    load_model(tmp_path / "a.pth", arch=ARCH)
    assert torch.equal(torch.get_rng_state(), before)


def test_paths_may_be_relative_or_start_at_home(
    tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(net.state_dict(), tmp_path / "a.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same_logits(load_model("~/a.pth", arch=ARCH), net)
    assert same_logits(load_model(f"timm:{ARCH}", weights="~/a.pth"), net)
    monkeypatch.chdir(tmp_path)
    assert same_logits(load_model("a.pth", arch=ARCH), net)


def saved(path: Path, net: nn.Module, **changes: Any) -> Path:
    state = dict(net.state_dict())
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    torch.save(state, path)
    return path


def test_weights_that_do_not_fit_are_named(tmp_path: Path, net: nn.Module) -> None:
    path = saved(tmp_path / "a.pth", net, conv1__weight=torch.ones(16, 3, 5, 5))
    message = r"a\.pth does not fit resnet20_32; wrong shape: conv1\.weight \[16, 3, 5, 5\] instead"
    fails(CheckpointError, message, path, arch=ARCH)

    path = saved(tmp_path / "a.pth", net, bn1__weight=None, new=torch.ones(2))
    fails(CheckpointError, r"; missing: bn1\.weight; unexpected: new$", path, arch=ARCH)

    path = saved(tmp_path / "a.pth", net, bn1__weight=torch.ones(16, dtype=torch.int32))
    fails(CheckpointError, r"wrong shape: bn1\.weight", path, arch=ARCH)

    torch.save(net.state_dict(), path)
    message = r"does not fit resnet32_32; missing: layer1\.3\.conv1\.weight, .* and \d+ more$"
    fails(CheckpointError, message, path, arch="resnet32_32")


def test_the_number_of_classes_is_read_and_checked(tmp_path: Path, net: nn.Module) -> None:
    path = saved(tmp_path / "a.pth", net)
    message = r"a\.pth has 7 classes, not the 10 asked for"
    fails(CheckpointError, message, path, arch=ARCH, num_classes=10)
    vit = timm.create_model("vit_micro_patch8_gap_64", num_classes=5)
    torch.save(vit.state_dict(), path)
    assert load_model(path, arch="vit_micro_patch8_gap_64").model.num_classes == 5
    bcos = timm.create_model("bcos_vitc_micro_patch8_64", num_classes=6)
    torch.save(bcos.state_dict(), path)
    assert load_model(path, arch="bcos_vitc_micro_patch8_64").model.num_classes == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path: Path, net: nn.Module, value: float) -> None:
    bad = net.layer1[0].conv1.weight.detach().clone()
    bad[0, 0, 0, :2] = value
    path = saved(tmp_path / "a.pth", net, layer1__0__conv1__weight=bad)
    message = r"a\.pth holds NaN or infinity in layer1\.0\.conv1\.weight \(2 of 2,304 values\)"
    fails(NonFiniteError, message, path, arch=ARCH)
    path = saved(tmp_path / "a.pth", net, bn1__running_var=torch.full((16,), value))
    fails(NonFiniteError, r"bn1\.running_var \(16 of 16 values\)", path, arch=ARCH)


def test_files_that_do_not_say_for_which_model(tmp_path: Path, net: nn.Module) -> None:
    path = saved(tmp_path / "a.pth", net)
    fails(SpecError, r"does not say for which model.*load_model\(PATH, arch=NAME\)", path)
    fails(SpecError, r"no model called 'resnet20_33'; did you mean", path, arch="resnet20_33")


def test_places_where_no_model_is(tmp_path: Path) -> None:
    fails(MissingError, r"there is no file .*a\.pt", tmp_path / "a.pt")
    fails(MissingError, r"there is no file or folder .*runs/a", tmp_path / "runs/a")
    fails(MissingError, r"has no config\.json: it is no Hugging Face ViT folder", tmp_path)
    (tmp_path / "notes.txt").write_text("lr 0.1")
    fails(CheckpointError, "neither a PyTorch file nor safetensors", tmp_path / "notes.txt")


# polysem's own checkpoints

TRANSFORM = Transform(size=(32, 32), crop_pct=1.0, mean=(0.1, 0.2, 0.3))


def ours(path: Path, net: nn.Module, name: str = ARCH, **options: Any) -> Path:
    model_args = options.pop("model_args", {"num_classes": 7})
    save_checkpoint(path, name, model_args, net.state_dict(), transform=TRANSFORM, **options)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_checkpoints_need_no_words(tmp_path: Path, net: nn.Module, suffix: str) -> None:
    path = ours(
        tmp_path / f"a{suffix}",
        net,
        classes=list("abcdefg"),
        recipe={"lr": 0.1},
        metrics={"top1": 0.9},
        step=4,
    )
    loaded = load_model(str(path))
    assert same_logits(loaded, net) and not loaded.model.training
    assert loaded.transform == TRANSFORM and loaded.classes == tuple("abcdefg")
    assert loaded.name == ARCH and loaded.spec == str(path)
    assert loaded.sha256 == state_digest(net.state_dict())
    assert loaded.info == {"recipe": {"lr": 0.1}, "metrics": {"top1": 0.9}, "step": 4}
    assert load_model(path, arch=ARCH, num_classes=7).sha256 == loaded.sha256
    assert load_model(f"timm:{ARCH}", weights=path).transform == TRANSFORM


def test_shipped_weights_are_close(tmp_path: Path, net: nn.Module) -> None:
    path = ours(tmp_path / "a.safetensors", net, dtype="float16")
    assert path.stat().st_size < 0.6 * 4 * sum(p.numel() for p in net.parameters())
    loaded = load_model(path)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.allclose(loaded.model(batch()), net(batch()), atol=0.02)


def test_checkpoints_that_contradict_the_request(tmp_path: Path, net: nn.Module) -> None:
    path = ours(tmp_path / "a.pt", net)
    fails(CheckpointError, "holds a resnet20_32, not the resnet18 asked for", path, arch="resnet18")
    fails(CheckpointError, "has 7 classes, not the 3 asked for", path, num_classes=3)


def test_checkpoints_that_cannot_be_built(tmp_path: Path, net: nn.Module) -> None:
    path = tmp_path / "a.pt"
    ours(path, net, "resnet20_33")
    fails(CheckpointError, "names the model 'resnet20_33', which .* did you mean", path)
    ours(path, net, "hf-hub:org/name")
    fails(CheckpointError, "names the model 'hf-hub:org/name', which this polysem cannot", path)
    ours(path, net, model_args={"num_classes": 7, "checkpoint_path": "evil.pt", "pretrained": True})
    fails(CheckpointError, "sets checkpoint_path, pretrained, which this polysem cannot", path)
    ours(path, net, model_args={"wings": 2})
    fails(CheckpointError, r"a\.pt: resnet20_32 cannot be built with \{'wings': 2\}", path)
    ours(path, net, model_args={"num_classes": 6})
    fails(CheckpointError, r"does not fit resnet20_32; wrong shape: fc\.weight \[7, 64\]", path)
    ours(path, net, classes=["a", "b"])
    fails(CheckpointError, "names 2 classes for 7 logits", path)


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "pwned"),))

    torch.save({"arch": ARCH, "state_dict": {}, "args": Malicious()}, tmp_path / "a.pth")
    for spec, options in (
        (tmp_path / "a.pth", {}),
        (tmp_path / "a.pth", {"arch": ARCH}),
        (f"timm:{ARCH}", {"weights": tmp_path / "a.pth"}),
        ("bcos:resnet18", {"weights": tmp_path / "a.pth"}),
    ):
        fails(CheckpointError, "refused and was not run", spec, **options)
    assert not (tmp_path / "pwned").exists()


# Official B-cos weights


@pytest.mark.parametrize("prefix", ["", "model."])
def test_official_bcos_weights(tmp_path: Path, prefix: str) -> None:
    model = timm.create_model("bcos_resnet20_32", max_out=2).eval()
    convs = {f"{key}.weight" for key, m in model.named_modules() if isinstance(m, BcosConv2d)}
    state = {
        prefix + (key.replace(".weight", ".linear.weight") if key in convs else key): value
        for key, value in model.state_dict().items()
    }
    averaged = {f"ema.module.{key}": value for key, value in state.items()} if prefix else {}
    torch.save({**state, **averaged}, tmp_path / "a.pth")
    loaded = load_model("bcos:cifar10_resnet20", weights=tmp_path / "a.pth")
    assert loaded.name == "bcos_resnet20_32" and loaded.transform.inverse
    assert loaded.sha256 == state_digest(model.state_dict())
    fails(
        CheckpointError,
        r"a\.pth does not fit bcos_resnet32_32; missing: ",
        "bcos:cifar10_resnet32",
        weights=tmp_path / "a.pth",
    )
    message = r"a\.pth: .*|a\.pth does not fit"
    fails(CheckpointError, message, "bcos:vitc_ti_patch1_14", weights=tmp_path / "a.pth")
    fails(SpecError, "densenet121", "bcos:densenet121", weights=tmp_path / "a.pth")


def test_bare_weights_are_no_official_ones(tmp_path: Path, net: nn.Module) -> None:
    path = saved(tmp_path / "a.pth", net)
    fails(CheckpointError, r"a\.pth: .*no weights of an official", "bcos:resnet18", weights=path)


# Building the architecture anew


def test_every_loaded_model_can_be_built_anew(tmp_path: Path, net: nn.Module) -> None:
    loaded = [
        load_model(f"timm:{ARCH}", num_classes=7),
        load_model(ours(tmp_path / "ours.safetensors", net)),
        load_model(saved(tmp_path / "bare.pt", net), arch=ARCH),
    ]
    for one in loaded:
        assert one.build is not None
        torch.manual_seed(5)
        again = one.build()  # the same draws as those of `net`
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "model_args"),
    [
        ("vit_micro_patch8_gap_64", {"depth": 10**7}),
        ("vit_micro_patch8_gap_64", {"embed_dim": 10**8}),
        ("vit_micro_patch8_gap_64", {"img_size": [10**6, 10**6]}),
        ("vit_micro_patch8_gap_64", {"mlp_ratio": 1e30}),
    ],
)
def test_a_checkpoint_does_not_say_how_much_memory_is_taken(
    tmp_path: Path, net: nn.Module, name: str, model_args: dict[str, Any]
) -> None:
    ours(tmp_path / "a.pt", net, name, model_args=model_args)
    fails(CheckpointError, "and holds .* tensors of .* values in all", tmp_path / "a.pt")


def test_shapes_are_held_against_the_weights_before_memory_is_taken(tmp_path: Path) -> None:
    """A ViT-giant's 4 GB are never asked for: the process would not get them."""
    torch.save({"arch": "vit_giant_patch14_224", "state_dict": {"a": torch.zeros(3)}},
               tmp_path / "a.pth")  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fails(CheckpointError, "does not fit vit_giant_patch14_224; missing", tmp_path / "a.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KB
