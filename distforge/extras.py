"""What a plain ``pip install distforge`` leaves out, and the sentence that says how to get it.

torch alone gives `distforge.optim` and `distforge.ops`; everything else comes with an extra of the
package. No module asks whether it has what it imports: where the import system has found a package
nowhere, and it is a module of distforge that wanted it, `MissingExtra` is raised in the place of
the bare ModuleNotFoundError. A package that is there and fails to import raises what it always did.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from distforge.errors import InputError

# Extra -> the top-level modules that it brings; pyproject.toml has the distributions. A module of
# several extras is told of as part of the first, or of the one that has the importing room's name.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": (
        "deepspeed",
        "huggingface_hub",
        "numpy",
        "peft",
        "pyarrow",
        "pydantic",
        "rich",
        "safetensors",
        "tokenizers",
        "tomli_w",
        "transformers",
        "tyro",
        "xxhash",
    ),
    "rollouts": ("ray",),
    "registry": ("mlflow", "sqlalchemy", "rich", "tomli_w", "tyro"),
    "report": ("jinja2", "matplotlib", "wandb"),
}

# The frames between an import statement and the finders.
_IMPORT_SYSTEM = ("importlib", "importlib._bootstrap", "importlib._bootstrap_external")


class MissingExtra(InputError, ModuleNotFoundError):
    """A package of one of the extras is not installed; the message has the command for that.

    Args:
        user: what needs it, such as a module's name or a command.
        name: the missing top-level module.
        extra: the extra that brings it.
    """

    def __init__(self, user: str, name: str, extra: str) -> None:
        message = f"{user} needs {name}, which is not installed; pip install 'distforge[{extra}]'"
        ModuleNotFoundError.__init__(self, message, name=name)
        self._parts = (user, name, extra)

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str, str]]:
        return MissingExtra, self._parts

    def needed_by(self, user: str) -> MissingExtra:
        """The same, told of ``user``."""
        return MissingExtra(user, *self._parts[1:])


def missing_modules(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def explain_missing() -> None:
    """Have the import system ask `_LastFinder` when it has found a module nowhere."""
    if not any(isinstance(finder, _LastFinder) for finder in sys.meta_path):
        sys.meta_path.append(_LastFinder())


class _LastFinder(MetaPathFinder):
    """Finds nothing; for an import by distforge it says which extra is missing.

    Imports by others, and their questions whether a package is there, are left alone: they have
    their own ways to do without.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        bringing = [extra for extra, names in EXTRAS.items() if fullname in names]
        importer = _importer() if bringing else ""
        rooms = importer.split(".")
        if rooms[0] == "distforge":
            extra = next((extra for extra in bringing if extra in rooms), bringing[0])
            raise MissingExtra(importer, fullname, extra)
        return None


def _importer() -> str:
    """The name of the module whose import statement is being carried out."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        name = str(frame.f_globals.get("__name__", ""))
        if name not in _IMPORT_SYSTEM:
            return name
    return ""
