"""A module imports only its own floor or below, and the optimizer needs torch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "distforge"

FLOORS = {
    **dict.fromkeys(["ops"], 0),
    **dict.fromkeys(["optim", "data", "models", "registry", "telemetry", "config"], 1),
    **dict.fromkeys(["rollouts", "training", "evaluation"], 2),
    **dict.fromkeys(["baking", "quietstar", "theater", "pipeline"], 3),
    **dict.fromkeys(["cli", "commands", "__main__"], 4),
}
# The package root and the error types are the ground that every floor stands on.
GROUND = -1
FLOORS.update({"__init__": GROUND, "errors": GROUND, "extras": GROUND})

TORCH_ALONE = ("ops", "optim")


def room(parts: tuple[str, ...]) -> str:
    """The first name below distforge: a package, or a module of its own."""
    return parts[0]


def imported_modules(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and absolute name of each import, those inside functions included.

    `package` is the package that the source stands in, to resolve relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from distforge import optim` names a room only in its alias.
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def violations(path: Path, source: str) -> list[str]:
    """What the floors forbid in one file; `path` is relative to the repository."""
    inside = path.with_suffix("").parts[1:]
    here = room(inside)
    found = []
    for line, name in imported_modules(source, path.parts[:-1]):
        parts = name.split(".")
        if parts[0] == "distforge" and len(parts) > 1:
            target = parts[1]
            # `from distforge import __version__` names no module.
            if target in FLOORS and FLOORS[target] > FLOORS[here]:
                found.append(f"{path}:{line}: {here} imports {target}, a floor above it")
        elif here in TORCH_ALONE and parts[0] not in {"torch", *sys.stdlib_module_names}:
            found.append(f"{path}:{line}: {here} needs torch alone, imports {parts[0]}")
        if here == "ops" and parts[:2] == ["distforge", "optim"]:
            found.append(f"{path}:{line}: ops imports optim")
    return found


def test_every_room_has_a_floor():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py"}
    rooms |= {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert rooms <= set(FLOORS), f"no floor is set for {sorted(rooms - set(FLOORS))}"


def test_imports_respect_the_floors():
    paths = sorted(PACKAGE.rglob("*.py"))
    assert len(paths) > 10
    found = [
        problem
        for path in paths
        for problem in violations(path.relative_to(ROOT), path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "path,source,expected",
    [
        ("distforge/ops/a.py", "from distforge.optim import MuonGrokfast", 2),
        ("distforge/data/a.py", "def f():\n    import distforge.training.engine", 1),
        ("distforge/data/a.py", "from distforge import baking", 1),
        ("distforge/optim/a.py", "from ..training import engine", 1),
        ("distforge/optim/a.py", "import numpy", 1),
        ("distforge/optim/a.py", "import math, torch\nfrom distforge.ops import backend", 0),
        ("distforge/training/a.py", "import deepspeed\nfrom distforge.optim import x", 0),
        ("distforge/cli.py", "from distforge.baking import x", 0),
    ],
)
def test_the_rule_itself_catches_what_it_should(path, source, expected):
    assert len(violations(Path(path), source)) == expected


BLOCKED_IMPORT = """
import importlib.abc, sys

HEAVY = {"deepspeed", "ray", "wandb", "mlflow", "transformers", "peft", "tokenizers", "pyarrow",
         "rich", "tyro", "safetensors", "matplotlib", "sqlalchemy"}

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import torch
import distforge.ops
import distforge.optim

model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
config = distforge.optim.MuonGrokfastConfig.baking()
optimizer = distforge.optim.MuonGrokfast(model.named_parameters(), config)
before = [p.detach().clone() for p in model.parameters()]
model(torch.ones(2, 8)).square().sum().backward()
optimizer.step()
print("moved", sum(not torch.equal(a, b) for a, b in zip(before, model.parameters())))
"""


def test_the_optimizer_steps_with_every_heavy_package_blocked():
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED_IMPORT], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "moved 4"
