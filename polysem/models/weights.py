"""Read tensors out of files that nobody vouches for, and put them into models that they must fit.

First step of the street: `checkpoint` and `load` stand on this file. Nothing here runs code from
a file: PyTorch files are opened with ``weights_only=True``, safetensors hold no code at all.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from polysem.errors import CheckpointError, MissingError, NonFiniteError, did_you_mean

__all__ = [
    "SUFFIXES", "fit", "read_tensors", "require_finite", "require_fit", "state_digest",
]  # fmt: skip

#: What a weights file may be called.
SUFFIXES = (".pt", ".pth", ".safetensors")

_CONTAINERS = ("state_dict", "model")  # where training scripts keep the tensors
_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every key
_SHOWN = 3  # keys named in a message


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors in a file, and what else the file says.

    Parameters
    ----------
    path : Path
        A safetensors file, or a PyTorch file holding a state dict, alone or under
        ``"state_dict"`` or ``"model"``. The content decides, not the suffix.

    Returns
    -------
    tensors : dict of str to Tensor
        On the CPU, without the prefixes ``module.`` and ``_orig_mod.``.
    header : dict
        The other entries of the file, or the metadata of the safetensors.

    Raises
    ------
    MissingError
        If there is no such file.
    CheckpointError
        If the file is a folder, empty, damaged, foreign, or would have to run code.
    """
    _require_file(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from None
    if not head:
        raise CheckpointError(f"{path} is empty: its copy or download did not happen")
    declared = int.from_bytes(head[:8], "little")
    content: Mapping[str, Any]
    if path.suffix == ".safetensors" or (head[8:] == b"{" and declared < size):
        content, header = _read_safetensors(path)
    else:
        content, header = _find_tensors(_read_pickle(path, head), path)
    return _strip_wrappers(_require_dense(content, size, path)), header


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder where a weights file was expected")
    if not path.exists():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        near = did_you_mean(path.name, (p.name for p in beside))
        raise MissingError(f"there is no file {path}{near}")
    if not path.is_file():
        raise CheckpointError(f"{path} is no ordinary file")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            header = dict(file.metadata() or {})
            return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118
    except Exception as error:  # whatever a parser makes of damaged bytes
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({_first_line(error)}); copy or download it "
            "again"
        ) from None


def _read_pickle(path: Path, head: bytes) -> Any:
    if head.startswith(b"PK\x03\x04"):
        _require_plain_zip(path)
    elif not head.startswith(b"\x80"):
        raise CheckpointError(
            f"{path} is neither a PyTorch file nor safetensors (it begins with {head[:4]!r})"
        )
    try:
        # Namespace, an inert record, is where timm's and DeiT's training scripts keep arguments.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # remarks on old files, of no use to the reader
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the Python object {found[1]}" if found else "a pickled Python object"
        raise CheckpointError(
            f"{path} is refused and was not run: it holds {what}, which can only be rebuilt by "
            "running code from the file; save the weights again with "
            "torch.save(model.state_dict(), PATH) or as .safetensors"
        ) from None
    except Exception as error:  # whatever a parser makes of damaged bytes
        raise CheckpointError(
            f"{path} is damaged or cut short ({_first_line(error)}); copy or download it again"
        ) from None


def _require_plain_zip(path: Path) -> None:
    """Refuse archives that `torch.save` never writes: TorchScript, and those that inflate."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise CheckpointError(
            f"{path} is damaged or cut short (its table of contents, at the end of the file, "
            "cannot be read); copy or download it again"
        ) from None
    names = [m.filename for m in members]
    if any(n.endswith("constants.pkl") for n in names):
        raise CheckpointError(
            f"{path} is refused and was not run: it is a TorchScript program; save the weights "
            "again with torch.save(model.state_dict(), PATH) or as .safetensors"
        )
    if not any(n.endswith("data.pkl") for n in names):
        raise CheckpointError(f"{path} is a zip archive, but not one that torch.save wrote")
    inflated = sum(m.file_size for m in members)
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or inflated > 2 * (
        path.stat().st_size
    ):
        raise CheckpointError(
            f"{path} is refused: it is a compressed archive that would grow to {inflated:,} bytes, "
            "and torch.save never compresses"
        )


def _find_tensors(content: Any, path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__} where a dict of named tensors was expected"
        )
    for key in _CONTAINERS:
        if isinstance(content.get(key), Mapping):
            return content[key], {k: v for k, v in content.items() if k != key}
    return content, {}


def _require_dense(content: Mapping[str, Any], size: int, path: Path) -> dict[str, Tensor]:
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds no state dict: entry {key!r} is a {type(value).__name__}, not a "
                f"tensor; tensors may lie at the top or under {' or '.join(map(repr, _CONTAINERS))}"
            )
        # A tensor larger than the file repeats itself: expanding it would fill the memory.
        if (
            value.layout is not torch.strided
            or value.device.type != "cpu"
            or value.is_quantized
            or value.numel() * value.element_size() > size
        ):
            raise CheckpointError(f"{path}: entry {key!r} is not a plain dense tensor")
    if not content:
        raise CheckpointError(f"{path} holds no tensors")
    return {key: value.detach() for key, value in content.items()}


def _strip_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in 2 * _WRAPPERS:  # either may be outermost
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def fit(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str, name: str) -> None:
    """Load tensors into a model, every one of them or none.

    Parameters
    ----------
    model : nn.Module
        Changed in place; values are cast to the types of its parameters and buffers.
    tensors : mapping of str to Tensor
    source, name : str
        What the message calls the weights and the model.

    Raises
    ------
    CheckpointError
        If names or shapes differ; the first of each kind are named.
    """
    require_fit(model, tensors, source=source, name=name)
    model.load_state_dict({**model.state_dict(), **tensors})


def require_fit(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str, name: str) -> None:
    """Refuse tensors whose names or shapes are not the model's, which may be on the meta device.

    Parameters and errors are those of `fit`.
    """
    own = model.state_dict()
    wrong = [
        f"{key} {list(tensors[key].shape)} instead of {list(value.shape)}"
        for key, value in own.items()
        if key in tensors and not _same_kind(tensors[key], value)
    ]
    # Files older than PyTorch 0.4.1 lack this counter, which evaluation never reads.
    missing = [k for k in own if k not in tensors and not k.endswith(".num_batches_tracked")]
    unexpected = [k for k in tensors if k not in own]
    faults = [
        f"{kind}: {_some(keys)}"
        for kind, keys in (("wrong shape", wrong), ("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if faults:
        raise CheckpointError(f"{source} does not fit {name}; {'; '.join(faults)}")


def _same_kind(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.is_floating_point() == b.is_floating_point()


def require_finite(model: nn.Module, *, source: str) -> None:
    """Refuse a model whose parameters or running statistics hold NaN or infinity.

    Buffers of other names may hold infinity on purpose (attention masks), never NaN.

    Raises
    ------
    NonFiniteError
        Naming the first tensors.
    """
    masks = {
        name
        for name, _ in model.named_buffers()
        if not name.endswith(("running_mean", "running_var"))
    }
    bad = []
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            found = value.isnan() if name in masks else ~value.isfinite()
            if found.any():
                bad.append(f"{name} ({int(found.sum())} of {value.numel():,} values)")
    if bad:
        raise NonFiniteError(
            f"{source} holds NaN or infinity in {_some(bad)}; the training that made it diverged "
            "or the file is damaged"
        )


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: names, types, shapes and bytes, in order of names.

    The digest does not depend on the file format, on the order of the keys, or on the device.

    >>> state_digest({"a": torch.zeros(2)}) == state_digest({"a": torch.zeros(2, 1)})
    False
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _some(names: Sequence[str] | Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0].split(". ")[0][:120] if text else type(error).__name__
