"""polysem's models are in timm's registry, whichever of the two is imported first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import polysem

# The repair without the package around it, as if timm imported by itself.
REPAIR = f"""
import importlib.util
path = {str(Path(polysem.__file__).parent / "_torchvision.py")!r}
spec = importlib.util.spec_from_file_location("repair", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.repair()
"""

CHECK = """
import sys
names = ["bcos_vit_micro_patch4_32", "vitc_tiny_patch8_gap_64", "bcos_resnet18", "resnet20_32"]
assert all(timm.is_model(name) for name in names)
assert timm.create_model("bcos_resnet20_32", num_classes=3).num_classes == 3
assert not [f for f in sys.meta_path if type(f).__name__ == "_AfterTimm"]
import inspect
assert inspect.getsource(timm)
"""

ORDERS = {
    "polysem first": "import polysem, timm",
    "timm first": f"{REPAIR}\nimport timm\nassert not timm.is_model('resnet20_32')\nimport polysem",
    "a part of timm": "import polysem\nfrom timm.layers import Mlp\nimport timm",
    "our models first": "from polysem.models import cnn, vit\nimport timm",
    # transformers asks so whether timm is installed
    "the spec only": """
import importlib.util, sys
import polysem
for _ in range(2):
    assert importlib.util.find_spec("timm").name == "timm"
assert "timm" not in sys.modules and "torch" not in sys.modules
import timm
""",
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_models_are_registered(order: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", order + "\n" + CHECK], check=True)
