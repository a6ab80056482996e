"""What works where an extra is not installed, and the sentence about what does not."""

from __future__ import annotations

import ast
import importlib.metadata as metadata
import json
import logging
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from distforge import extras
from distforge.errors import InputError
from distforge.extras import EXTRAS, MissingExtra, missing_modules
from distforge.training.afterwards import spared

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Runs statements where the packages named by the first argument are not to be found, and prints
# for each what it raised and what it wrote.
RUNNER = """
import contextlib, importlib.machinery, io, json, sys
hidden, statements = map(json.loads, sys.argv[1:3])

class Installed:
    find_distributions = importlib.machinery.PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] not in hidden:
            return importlib.machinery.PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Installed
answers = []
for statement in statements:
    raised = ""
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
        try:
            exec(statement, {"__name__": "users_script"})
        except BaseException as error:
            raised = f"{type(error).__name__}: {error}"
    answers.append([raised, written.getvalue()])
print(json.dumps(answers))
"""


def closure(names: list[str]) -> set[str]:
    """These distributions and all that they require, by their canonical names."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = canonicalize_name(queue.pop())
        if name in found:
            continue
        found.add(name)
        try:
            required = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue  # of another platform
        queue += [r.name for r in required if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


def distributions(extra: str) -> list[str]:
    """What pyproject.toml lists for an extra, other extras' lists included."""
    found = []
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.name == "distforge":
            found += [name for other in requirement.extras for name in distributions(other)]
        else:
            found.append(requirement.name)
    return found


def run_with(extra: str | None, statements: list[str]) -> list[tuple[str, str]]:
    """By statement, what it raised and wrote where torch and one extra alone are installed."""
    there = closure(["torch", *(distributions(extra) if extra else [])])
    hidden = [
        module
        for module, owners in metadata.packages_distributions().items()
        if module != "distforge" and not there & {canonicalize_name(owner) for owner in owners}
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(hidden), json.dumps(statements)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return [(raised, written) for raised, written in json.loads(done.stdout.splitlines()[-1])]


def command(*words: str) -> str:
    return f"from distforge.cli import main; print('status', main({list(words)!r}))"


WORKS = [
    "import distforge.ops, distforge.optim, distforge.config, distforge.registry",
    command("--help"),
    command("--version"),
    command("doctor"),
]
MISSING = {
    "from distforge.baking import PromptBakingTrainer": "train",
    "from distforge.data import ReasoningDataset": "train",
    "from distforge.quietstar import run_step2_rl": "train",
    "from distforge.rollouts import open_pool": "train",
    "from distforge.telemetry import WandBLogger": "train",
    "from distforge.registry import ModelRegistry; ModelRegistry('absent.db')": "registry",
}
COMMANDS = {
    command("bake", "--config", "quick"): ("bake", "train"),
    command("run"): ("run", "train"),
    command("report", "runs"): ("report", "train"),
    command("registry", "list"): ("registry list", "registry"),
}


@pytest.fixture(scope="module")
def bare() -> dict[str, tuple[str, str]]:
    """What each of these statements raises and writes where torch alone is installed."""
    statements = [*WORKS, *MISSING, *COMMANDS]
    return dict(zip(statements, run_with(None, statements), strict=True))


def test_what_torch_alone_gives(bare):
    assert [bare[statement][0] for statement in WORKS] == [""] * 4
    usage, version, doctor = (bare[statement][1] for statement in WORKS[1:])
    assert all("status 0" in written for written in (usage, version, doctor))
    assert "usage: distforge COMMAND" in usage
    assert re.search(r"extra rollouts .*pip install 'distforge\[rollouts\]'", doctor)


@pytest.mark.parametrize("statement", MISSING)
def test_a_bare_install_says_which_extra_is_missing(bare, statement):
    sentence = (
        r"MissingExtra: distforge\.[\w.]+ needs \w+, which is not installed; "
        rf"pip install 'distforge\[{MISSING[statement]}\]'"
    )
    assert re.fullmatch(sentence, bare[statement][0])


@pytest.mark.parametrize("statement", COMMANDS)
def test_a_command_of_a_bare_install_is_one_sentence_and_status_2(bare, statement):
    name, extra = COMMANDS[statement]
    raised, written = bare[statement]
    assert raised == ""
    sentence = (
        rf"error: `distforge {name}` needs \w+, which is not installed; "
        rf"pip install 'distforge\[{extra}\]'\nstatus 2\n"
    )
    # torch itself may say that there is no numpy.
    assert re.search(rf"^{sentence}\Z", written, re.MULTILINE)


def test_the_registry_alone_needs_no_training():
    ((raised, written),) = run_with("registry", [command("registry", "list", "--uri", "absent.db")])
    assert raised == ""
    assert "error: there is no registry at 'absent.db'" in written


def test_training_alone_runs_and_asks_for_ray_when_there_are_actors():
    opened = "from distforge.rollouts import RolloutConfig, cluster; "
    imported, parsed, ray = run_with(
        "train",
        [
            "import distforge.baking, distforge.quietstar, distforge.telemetry",
            command("bake", "--config", "quick", "--training.max-steps", "none-at-all"),
            f"{opened}cluster.connected(RolloutConfig(num_actors=1)).__enter__()",
        ],
    )
    assert imported[0] == ""
    assert parsed == (
        "",
        "error: --training.max-steps is 'none-at-all'; expected a whole number\nstatus 2\n",
    )
    assert ray[0] == (
        "MissingExtra: distforge.rollouts.cluster needs ray, which is not installed; "
        "pip install 'distforge[rollouts]'"
    )


def test_a_gguf_file_asks_for_its_extra(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    statement = command("champion", "import", str(tmp_path / "model.gguf"))
    ((raised, written),) = run_with("train", [statement])
    assert raised == ""
    assert (
        "error: `distforge champion import` needs gguf, which is not installed; "
        "pip install 'distforge[gguf]'\nstatus 2" in written
    )


def imported_by(name: str, statement: str) -> None:
    exec(statement, {"__name__": name})


@pytest.fixture
def absent(monkeypatch) -> str:
    monkeypatch.setitem(extras.EXTRAS, "rollouts", ("ray", "a_package_that_is_nowhere"))
    return "a_package_that_is_nowhere"


def test_it_is_an_import_error_and_bad_input(absent):
    with pytest.raises(MissingExtra) as caught:
        imported_by("distforge.rollouts.pool", f"import {absent}.inner")
    assert isinstance(caught.value, ModuleNotFoundError)
    assert isinstance(caught.value, InputError)
    assert caught.value.name == absent
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (MissingExtra, str(caught.value))


def test_what_others_import_and_ask_is_left_alone(absent):
    for name in ("users_script", "distforged.pool"):
        with pytest.raises(ModuleNotFoundError) as caught:
            imported_by(name, f"import {absent}")
        assert type(caught.value) is ModuleNotFoundError
    assert absent in missing_modules("rollouts")


def test_a_package_that_is_broken_is_not_called_missing(absent, tmp_path, monkeypatch):
    (tmp_path / f"{absent}.py").write_text("import a_library_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_library_it_needs") as caught:
        imported_by("distforge.rollouts.pool", f"import {absent}")
    assert type(caught.value) is ModuleNotFoundError


def test_what_follows_training_is_left_out_with_a_warning(absent, caplog):
    with caplog.at_level(logging.WARNING), spared("report"):
        imported_by("distforge.rollouts.pool", f"import {absent}")
    (record,) = caplog.records
    assert record.getMessage().startswith("no report: distforge.rollouts.pool needs a_package")


def test_every_import_is_of_an_extra_and_every_extra_brings_its_modules():
    imported = set()
    for path in (ROOT / "distforge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    known = {name for names in EXTRAS.values() for name in names}
    # vLLM lies in an interpreter of its own, that actors run in: it does not fit beside the others.
    ours = {"torch", "distforge", "vllm"}
    assert imported - set(sys.stdlib_module_names) - ours <= known
    owners = metadata.packages_distributions()
    for extra, modules in EXTRAS.items():
        brought = set(map(canonicalize_name, distributions(extra)))
        for module in modules:
            # Not yet in an environment that was made before a package joined the lock.
            names = owners.get(module, [module])
            assert brought & set(map(canonicalize_name, names)), (extra, module)
    assert PROJECT["dependencies"] == ["torch>=2.11"]
