"""What can be set in a configuration: each key with its type, its default and its description.

A dataclass describes its fields in its docstring, ``name: text`` or ``one, other: text`` on a line
of its own with what follows indented, or behind ``. `` or ``; ``. The help of a command and the
page of all keys are both made from that.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_MISSING = dataclasses.MISSING
_NAMES = r"(?P<names>`{0,2}\w+`{0,2}(?:, `{0,2}\w+`{0,2})*): "
_ENTRY = re.compile(rf"^(?P<indent> *){_NAMES}(?P<text>.*)$")
_INLINE = re.compile(rf"(?<=[;.]) {_NAMES}")
# What ends the first paragraphs of a docstring.
_HEADINGS = ("Raises", "Args:", "Attributes:")


@dataclass(frozen=True)
class Setting:
    """One key.

    name: dotted, with underscores. short: what stands for it too, or empty.
    kind: what it takes, in words such as ``INT``. default: as TOML; empty where it must be given.
    text: its description; empty where its class has none.
    positional: given without its name on the command line.
    """

    name: str
    kind: str
    default: str
    text: str
    short: str = ""
    positional: bool = False

    @property
    def option(self) -> str:
        """As it is given on the command line."""
        if self.positional:
            return self.name.upper()
        return f"--{self.name.replace('_', '-')}"

    @property
    def section(self) -> str:
        """The table it stands in; empty for the top level."""
        return self.name.rpartition(".")[0]


def settings_of(cls: type[Any], default: Any = _MISSING, prefix: str = "") -> list[Setting]:
    """All keys of a configuration class, those of its sections behind its own.

    Args:
        default: an instance whose values are the defaults; by default those of the class.
    """
    found, sections = list[Setting](), list[Setting]()
    hints = typing.get_type_hints(cls, include_extras=True)
    texts = field_texts(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        value = default_of(field) if default is _MISSING else getattr(default, field.name)
        inner = _section_class(hints[field.name], value)
        name = f"{prefix}{field.name}"
        if inner is not None:
            sections += settings_of(inner, value, f"{name}.")
            continue
        short = prefix.rstrip(".") if getattr(cls, "SHORT", "") == field.name else ""
        positional = "Positional" in map(str, getattr(hints[field.name], "__metadata__", ()))
        shown = "" if value is _MISSING else toml_value(value)
        kind = kind_name(hints[field.name])
        text = texts.get(field.name, "")
        found.append(Setting(name, kind, shown, text, short, positional))
    return found + sections


def section_texts(cls: type[Any], prefix: str = "") -> dict[str, str]:
    """The first sentence about each section, by its dotted name."""
    found: dict[str, str] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        inner = _section_class(hints[field.name], default_of(field))
        if field.init and inner is not None:
            found[f"{prefix}{field.name}"] = summary(inner).split("\n")[0]
            found |= section_texts(inner, f"{prefix}{field.name}.")
    return found


def summary(cls: type[Any]) -> str:
    """What the docstring of ``cls`` says before it describes fields: paragraphs, one a line."""
    lines = []
    for line in (inspect.getdoc(cls) or "").splitlines():
        if line.startswith(_HEADINGS) or _names(_ENTRY.match(line), cls):
            break
        lines.append(line)
    paragraphs = "\n".join(lines).strip().split("\n\n")
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def field_texts(cls: type[Any]) -> dict[str, str]:
    """The description of each field that has one, also of those that ``cls`` inherits."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        for names, text in _entries(owner.__doc__ or "", cls):
            found |= dict.fromkeys(names, text)
    return found


def kind_name(wanted: Any) -> str:
    """A type as help names it: INT, NUMBER, TEXT, PATH, yes|no, a choice, or several of these."""
    origin, args = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        return kind_name(args[0])
    if origin is Literal:
        return "|".join(str(arg) or '""' for arg in args)
    if origin in (Union, types.UnionType):
        return "|".join("none" if arg is types.NoneType else kind_name(arg) for arg in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"{kind_name(args[0])} ..."
        return " ".join(map(kind_name, args))
    names = {bool: "yes|no", int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}
    return names.get(wanted, "TABLE" if dataclasses.is_dataclass(wanted) else str(wanted))


def toml_value(value: Any) -> str:
    """A value as it stands in a TOML file."""
    if value is None:
        return '"none"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, float):
        return f"{value:g}" if value == float(f"{value:g}") else repr(value)
    return json.dumps(value if isinstance(value, bool | int) else str(value), ensure_ascii=False)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default; ``dataclasses.MISSING`` where it must be given."""
    factory: Any = field.default_factory
    return field.default if factory is _MISSING else factory()


def _section_class(wanted: Any, value: Any) -> type[Any] | None:
    """The class of a section; None for a plain value, and for a section that is left out."""
    if dataclasses.is_dataclass(value):
        return value if isinstance(value, type) else type(value)
    if value is not None and dataclasses.is_dataclass(wanted):
        return typing.cast(type[Any], wanted)
    return None


def _entries(doc: str, cls: type[Any]) -> Iterator[tuple[Sequence[str], str]]:
    names: tuple[str, ...] = ()
    indent, parts = -1, list[str]()
    for line in [*inspect.cleandoc(doc).splitlines(), ""]:
        entry = _ENTRY.match(line)
        if found := _names(entry, cls):
            yield from _inline(names, " ".join(parts), cls)
            assert entry is not None
            names, indent, parts = found, len(entry["indent"]), [entry["text"]]
        elif names and line.strip() and len(line) - len(line.lstrip()) > indent:
            parts.append(line.strip())
        else:
            yield from _inline(names, " ".join(parts), cls)
            names, parts = (), []


def _inline(names: Sequence[str], text: str, cls: type[Any]) -> Iterator[tuple[Sequence[str], str]]:
    """An entry, and those that stand in the same sentence."""
    place = 0
    for found in _INLINE.finditer(text):
        if others := _names(found, cls):
            if names:
                yield names, text[place : found.start()].strip().removesuffix(";")
            names, place = others, found.end()
    if names:
        yield names, text[place:].strip()


def _names(entry: re.Match[str] | None, cls: type[Any]) -> tuple[str, ...]:
    """The fields that an entry is about; none where it is no entry."""
    if entry is None or not dataclasses.is_dataclass(cls):
        return ()
    names = tuple(entry["names"].replace("`", "").split(", "))
    known = {field.name for field in dataclasses.fields(cls)}
    return names if known.issuperset(names) else ()
