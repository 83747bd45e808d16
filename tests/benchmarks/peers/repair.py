"""Import torchvision first, repaired as polysem repairs it, in an environment without polysem."""

import importlib.util
from pathlib import Path

_file = Path(__file__).parents[3] / "polysem" / "_torchvision.py"
_spec = importlib.util.spec_from_file_location("torchvision_repair", _file)
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
_module.repair()
