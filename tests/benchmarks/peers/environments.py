"""A virtual environment for each peer: made once, from the package index, and left alone after.

Nothing is shared with the environment that polysem runs in but the version of torch, so that no
row of the comparison owes its speed to another build.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ENVIRONMENTS", "Environment", "Installed", "install"]

# torchvision is pinned by torch's own version, and its compiled part is not used
_COMMON = ("torchvision", "timm", "psutil")
_TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Environment:
    """What a peer is installed as.

    Attributes
    ----------
    name : str
        Of the folder.
    packages : tuple of str
        For pip, after torch.
    imports : str
        The module whose import shows that it works; empty for torch alone.
    """

    name: str
    packages: tuple[str, ...]
    imports: str


#: By the name that the rows' peers carry.
ENVIRONMENTS = {
    e.name: e
    for e in (
        Environment("ViT-Prisma", ("vit-prisma", "matplotlib", "wandb"), "vit_prisma"),
        Environment("TransformerLens", ("transformer-lens",), "transformer_lens"),
        Environment("nnsight", ("nnsight",), "nnsight"),
        Environment("semanticlens", ("semanticlens",), "semanticlens"),
        Environment("formulations", (), ""),
    )
}


@dataclass(frozen=True)
class Installed:
    """What came of an installation.

    Attributes
    ----------
    python : Path or None
        The environment's interpreter; None where it could not be made.
    version : str
        Of the peer's package.
    problem : str
        The last line of what went wrong.
    """

    python: Path | None
    version: str = ""
    problem: str = ""


def install(environment: Environment, root: Path) -> Installed:
    """Make a peer's environment below `root` unless it is there, and try to import the peer."""
    folder = root / environment.name
    python = folder / "bin" / "python"
    if not (folder / "installed.json").is_file():
        venv.create(folder, with_pip=True, clear=True)
        for packages in ((_TORCH,), (_TORCH, *_COMMON, *environment.packages)):
            done = _run(python, "-m", "pip", "install", "--quiet", *packages)
            if done.returncode:
                return Installed(None, problem=_last_line(done.stderr))
        listed = _run(python, "-m", "pip", "list", "--format", "json").stdout
        (folder / "installed.json").write_text(listed, encoding="utf-8")
    packages = {
        p["name"]: p["version"] for p in json.loads((folder / "installed.json").read_text())
    }
    version = packages.get((environment.packages or ("torch",))[0], "")
    if environment.imports:
        here = Path(__file__).parent
        code = (
            f"import sys; sys.path.insert(0, {str(here)!r}); import repair, {environment.imports}"
        )
        done = _run(python, "-c", code)
        if done.returncode:
            return Installed(None, version, _last_line(done.stderr))
    return Installed(python, version)


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


if __name__ == "__main__":
    for wanted in ENVIRONMENTS.values():
        print(wanted.name, install(wanted, Path(sys.argv[1])), flush=True)
