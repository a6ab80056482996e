"""Which TOML file a configuration is in, and what it says with those that it extends."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

from distforge.errors import InputError

# Inside the package in a wheel, beside it in a checkout.
_SHIPPED = [Path(__file__).with_name("configs"), Path(__file__).parents[1] / "configs"]

_EXTENDS = "extends"


def find_config(path: Path) -> Path:
    """The file that ``path`` names: itself, or the shipped one where it is a bare name.

    Raises:
        InputError: a bare name, neither that of a file here nor of a shipped configuration.
    """
    if path.exists() or path.name != str(path):
        return path
    for folder in _SHIPPED:
        shipped = folder / f"{path.name.removesuffix('.toml')}.toml"
        if shipped.is_file():
            return shipped
    close = difflib.get_close_matches(path.name.removesuffix(".toml"), _shipped_names(), n=1)
    raise InputError(
        f"there is no file {str(path)!r} here and no shipped configuration of that name; "
        + (f"did you mean {close[0]!r}?" if close else f"give a TOML file or one of {_listed()}")
    )


def top_level_keys(path: Path) -> set[str]:
    """The keys and tables at the top of a TOML file; see `find_config`."""
    return set(read_extended(find_config(path)))


def _shipped_names() -> list[str]:
    return sorted(file.stem for folder in _SHIPPED for file in folder.glob("*.toml"))


def _listed() -> str:
    return ", ".join(_shipped_names())


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read the configuration {path}: {error.strerror or error}; "
            f"give a TOML file or one of {_listed()}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}; correct it there") from error


def read_extended(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's content over that of the file it extends; ``below``: those that extend it."""
    content = _read_toml(path)
    if _EXTENDS not in content:
        return content
    named = content.pop(_EXTENDS)
    if not isinstance(named, str):
        raise InputError(f"{path}: {_EXTENDS} = {named!r} should be a string")
    beside = path.parent / named
    other = beside if beside.exists() else find_config(Path(named))
    if other.resolve() in (path.resolve(), *(file.resolve() for file in below)):
        raise InputError(f"{path}: {_EXTENDS} = {named!r} leads back to itself; remove it")
    return _merged(read_extended(other, (path, *below)), content)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merged(under[k], v) for k, v in over.items() if _are_tables(under.get(k), v)}
    return {**under, **over, **both}


def _are_tables(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)
