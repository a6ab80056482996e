"""A module imports only its own floor or below, never in a circle; the optimizer needs torch alone.

Every import counts, also one inside a function or for type checking alone.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "distforge"

FLOORS = {
    **dict.fromkeys(["ops"], 0),
    **dict.fromkeys(
        [
            "optim",
            "data",
            "rendering",
            "handoff",
            "models",
            "registry",
            "telemetry",
            "config",
            "config_files",
        ],
        1,
    ),
    **dict.fromkeys(["thinking", "rewards", "rollouts", "training", "evaluation", "reports"], 2),
    **dict.fromkeys(["champion", "baking", "quietstar", "theater"], 3),
    **dict.fromkeys(["pipeline"], 4),
    **dict.fromkeys(["cli", "commands", "__main__"], 5),
}
# The package root and the error types are the ground that every floor stands on.
GROUND = -1
FLOORS.update(
    {
        "__init__": GROUND,
        "activity": GROUND,
        "deadlines": GROUND,
        "errors": GROUND,
        "extras": GROUND,
        "settings": GROUND,
        "help": GROUND,
        "mistyped": GROUND,
        "durable": GROUND,
        "locks": GROUND,
        "typed_json": GROUND,
        "user_code": GROUND,
    }
)

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


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def packages_entered(here: str, target: str) -> set[str]:
    """The packages that ``target`` is in and ``here`` is not: importing it runs their code."""
    parts = target.split(".")
    packages = {".".join(parts[:i]) for i in range(1, len(parts))}
    return {package for package in packages if not f"{here}.".startswith(f"{package}.")}


def import_graph(sources: dict[Path, str]) -> dict[str, set[str]]:
    """Which module of ``sources`` (by path relative to the repository) imports which other."""
    known = {module_name(path) for path in sources}
    graph: dict[str, set[str]] = {}
    for path, source in sources.items():
        here, found = module_name(path), set()
        for _, name in imported_modules(source, path.parts[:-1]):
            # `from a.b import c` names the module a.b.c, or something that is in a.b.
            target = name if name in known else name.rpartition(".")[0]
            if target in known and target != here:
                # A module of another room runs that room's __init__ first.
                found |= {target, *packages_entered(here, target)} & known
        graph[here] = found
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, or none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_imports_form_no_circle():
    sources = {path.relative_to(ROOT): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert circle(import_graph(sources)) == []


@pytest.mark.parametrize(
    "first,second,found",
    [
        ("from distforge.a import two", "from distforge.a.one import x", True),
        ("from distforge.a.two import x", "def f():\n    import distforge.a.one", True),
        (
            "from .two import x",
            "if TYPE_CHECKING:\n    from distforge.a.one import x",
            True,
        ),
        ("from distforge.a.two import x", "from distforge.errors import InputError", False),
    ],
)
def test_a_circle_is_seen_however_it_is_written(first, second, found):
    sources = {Path("distforge/a/one.py"): first, Path("distforge/a/two.py"): second}
    assert bool(circle(import_graph(sources))) is found


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
