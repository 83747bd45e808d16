"""Ways to spoil what is read: bytes, JSON, and what would run if it were unpickled."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["hostile_pickle", "spoil_bytes", "spoil_json", "spoil_text", "spoil_tree"]

#: What takes the place of a value in JSON: other types, and numbers and words that hurt.
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**18), 0.5, 1e308, -0.0,
    float("nan"), float("inf"), "", "x", "nan", "\x00", "../../escape", "/escape", "..", ".",
    "a/b", "c\\d", "<script>alert(1)</script>", "\x1b[31mred", "\ud83d\ude00", "é" * 300, "%s%n",
    "{0.__class__}", [], [None], [[]], {}, {"a": 1}, [1, 2], [10**9, 10**9], ["a", "b"],
)  # fmt: skip

_CHUNKS = (b"\x00", b"\xff", b"\x00" * 64, b"\xff\xff\xff\x7f", b"PK\x03\x04", b"../", b"%s%n")


class _Touch:
    """Unpickled, it makes a file: the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.canary),)


def hostile_pickle(rng: random.Random, canary: Path, *, inside: Any = None) -> bytes:
    """Return a pickle that makes the canary, alone or within what looks harmless."""
    held: Any = _Touch(canary)
    for _ in range(rng.randrange(3)):
        held = rng.choice([{"state_dict": held}, [held], {"data": held, "labels": [1]}, (held, 1)])
    if inside is not None and rng.random() < 0.5:
        held = {**inside, rng.choice(["extra", *map(str, inside)]): held}
    return pickle.dumps(held, protocol=rng.randrange(6))


def spoil_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return the bytes flipped, cut, repeated, overwritten or with others put in."""
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(content) + 1)
        if rng.random() < 0.4:  # headers are where meaning lies
            at = min(at, rng.randrange(256))
        kind = rng.randrange(6)
        if kind == 0 and at < len(content):
            flipped = bytes([content[at] ^ 1 << rng.randrange(8)])
            content = content[:at] + flipped + content[at + 1 :]
        elif kind == 1:
            content = content[:at]
        elif kind == 2:
            content = content[:at] + rng.choice(_CHUNKS) + content[at:]
        elif kind == 3:
            piece = rng.choice(_CHUNKS)
            content = content[:at] + piece + content[at + len(piece) :]
        elif kind == 4:
            content = content[:at] + content[at + rng.randrange(1, 64) :]
        else:
            content = content[:at] + content[max(0, at - rng.randrange(1, 64)) :]
    return content


def spoil_json(rng: random.Random, value: Any) -> Any:
    """Return JSON with one to three of its values, keys or lists changed."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = list(_places(value))
        if not places:
            return rng.choice(_VALUES)
        holder, key = rng.choice(places)
        kind = rng.randrange(5)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(rng.choice(_VALUES))] = holder.pop(key)
        elif kind == 2:
            other, there = rng.choice(places)
            if _still(other, there):
                holder[key] = json.loads(json.dumps(other[there]))
        else:
            holder[key] = rng.choice(_VALUES)
    return value


def spoil_text(rng: random.Random, text: str) -> str:
    """Return text with lines swapped, repeated or changed, or a word of it replaced."""
    lines = text.split("\n")
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.randrange(len(lines))
        kind = rng.randrange(5)
        if kind == 0:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif kind == 1:
            del lines[at : at + rng.randrange(1, 3)]
            lines = lines or [""]
        elif kind == 2:
            lines[at] = " " * rng.randrange(8) + lines[at].strip()
        else:
            start, colon, _ = lines[at].partition(":")
            shown = json.dumps(rng.choice(_VALUES)) if rng.random() < 0.5 else rng.choice(_YAML)
            lines[at] = f"{start}{colon} {shown}" if colon else shown
    return "\n".join(lines)


_YAML = (
    "&a [*a, *a]", "*unknown", "!!python/object/apply:os.mkdir ['canary']", "!!binary x", "? [1]",
    "2024-13-45", "1" * 5000, "0x" + "f" * 60, "1:99:99", "[" * 400, "{" * 400, "<<: 3", "!!set x",
    "- " * 400, "!!int x", "!!float z", "!!timestamp 1", "1e999", ".nan", "'", '"\\xZZ"', "\t- a",
    "[[[*x]]]", "\x07", "~", "---\n---", "%YAML 9.9\n---", "!!omap [a]", "!!pairs [a]",
)  # fmt: skip


def spoil_tree(rng: random.Random, folder: Path, canary: Path) -> str:
    """Spoil one file of a folder in place, and say what was done to which."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    described = [path for path in files if path.suffix == ".json"]
    at = rng.choice(described if rng.random() < 0.6 else files)
    kind = rng.randrange(8)
    if kind == 0:
        at.unlink()
    elif kind == 1:
        at.write_bytes(hostile_pickle(rng, canary))
    elif kind == 2:
        at.write_bytes(rng.choice(files).read_bytes())
    elif at.suffix == ".json" and kind < 7:
        changed = spoil_json(rng, json.loads(at.read_text(encoding="utf-8")))
        at.write_text(json.dumps(changed), encoding="utf-8")
    else:
        at.write_bytes(spoil_bytes(rng, at.read_bytes()))
    return f"{('removed', 'pickle', 'another file')[kind] if kind < 3 else 'changed'} {at.name}"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = list(value.items()) if isinstance(value, dict) else []
    items = list(enumerate(value)) if isinstance(value, list) else items
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _still(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)
