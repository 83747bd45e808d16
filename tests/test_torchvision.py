"""The repair of torchvision acts when the import fails in its one way, and only then.

Each case is a process of its own in which a torchvision that we wrote stands before the real one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Fails as torchvision does without its compiled operators: it registers fake kernels for them.
LACKS_OPERATORS = """
import torch
import torchvision.parts
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold): return dets.new_empty(0)
@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold): return dets.new_empty(0)
"""
FINE = "import torchvision.parts"
FAILS_OTHERWISE = "raise RuntimeError('operator torchvision::roi_align is broken')"
LACKS_A_LIBRARY = "import a_library_that_nobody_has"

REPORT = """
import json, sys
import torch
from polysem import _torchvision
if {missing}: sys.modules["torchvision"] = None
def declared():
    return [n for n in ("nms", "qnms") if hasattr(torch.ops.torchvision, n)]
said = {{"before": declared(), "repaired": _torchvision.repair(), "again": _torchvision.repair()}}
try:
    import torchvision
    import torchvision.parts
    said["import"] = torchvision.__file__
    said["parts"] = torchvision.parts is sys.modules["torchvision.parts"]
except Exception as error:
    said["import"] = f"{{type(error).__name__}}: {{error}}"
said["after"] = declared()
print(json.dumps(said))
"""


def repair(tmp_path: Path, content: str | None) -> dict[str, Any]:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "parts.py").write_text("")
    (package / "__init__.py").write_text(content or "")
    code = REPORT.format(missing=content is None)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["before"] == []
    return said


def test_missing_operators_are_declared(tmp_path: Path) -> None:
    said = repair(tmp_path, LACKS_OPERATORS)
    assert said["repaired"] is True and said["again"] is False
    assert said["import"] == str(tmp_path / "torchvision/__init__.py") and said["parts"]
    assert said["after"] == ["nms", "qnms"]


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (FINE, "torchvision/__init__.py"),
        (FAILS_OTHERWISE, "RuntimeError: operator torchvision::roi_align is broken"),
        (LACKS_A_LIBRARY, "ModuleNotFoundError: No module named 'a_library_that_nobody_has'"),
        (None, "ModuleNotFoundError: import of torchvision halted; None in sys.modules"),
    ],
    ids=["fine", "another error", "missing library", "no torchvision"],
)
def test_everything_else_is_left_alone(content: str | None, outcome: str, tmp_path: Path) -> None:
    said = repair(tmp_path, content)
    assert said["repaired"] is False and said["again"] is False
    assert said["import"].endswith(outcome)
    assert said["after"] == []


def test_the_installed_torchvision_imports_and_transforms() -> None:
    code = """
from polysem import _torchvision
_torchvision.repair()
import torch
from torchvision.transforms import functional as F
out = F.resize(torch.zeros(3, 8, 8), [4, 4], antialias=True)
assert out.shape == (3, 4, 4)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
