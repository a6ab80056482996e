"""Configuration: TOML files into frozen dataclasses, with dotted overrides on the command line.

A component owns its dataclass and says in `__post_init__` what it accepts; this module only
reads. It is strict, because a misspelt key that is quietly ignored costs a training run.
TOML has no null, so a field that may be None is written as the string "none".
"""

import contextlib
import dataclasses
import difflib
import hashlib
import io
import json
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from distforge.config_files import find_config, read_extended
from distforge.errors import InputError
from distforge.mistyped import what_is_wrong
from distforge.settings import default_of, settings_of

T = TypeVar("T")

_MISSING = dataclasses.MISSING
_NONE = "none"


def load_config(
    cls: type[T],
    path: Path | None,
    overrides: Sequence[str],
    *,
    prog: str | None = None,
    table: str = "",
    ignore: Sequence[str] = (),
) -> T:
    """Build `cls` from its defaults, then the TOML file, then the command line, in that order.

    Tables update the *default value* of a nested field, so a preset given as a default keeps
    what the file does not name. Overrides are written `--section.some-key value` or
    `--section.some_key=value`; None is `none`, a flag is `--section.flag` / `--section.no-flag`.
    A file whose top level has ``extends = "OTHER.toml"`` (beside it, or a shipped one's name)
    changes what that file says, key by key.
    A class may have a method `for_settings`: it is given the names of all that is set, dotted, and
    returns the defaults that go with them, or None for the usual ones.
    Where a section's class names one of its fields as its `SHORT`, the section's own name, in the
    file or on the command line, stands for that field. A class's `RENAMED` says what fields that
    had another name are called now: the old name is refused with the new one.

    Args:
        cls: a frozen dataclass. Where `path` is given, fields without a default must be in the
            file; otherwise they must be on the command line.
        path: the TOML file, or None for defaults alone. A bare name that is no file here, such as
            ``quick`` or ``quick.toml``, is that of a shipped configuration.
        overrides: command-line words; `--help` lists every field with its docstring.
        prog: the command's name in the help text.
        table: the file's table of that name is read instead of the whole file, where it is there.
        ignore: top-level tables of the file that others read.

    Raises:
        InputError: unreadable file, unknown key or option, wrong type, or a value that
            `__post_init__` refuses; the message names the file and the dotted key.
        SystemExit: status 0 after `--help`.
    """
    for word in overrides:
        _refuse_old_name(cls, word)
    words = [_long_word(cls, word) for word in overrides]
    pairs = zip(words, ["", *words], strict=False)  # the last word precedes nothing
    words = [_none_word(cls, word, before) for word, before in pairs]
    if path is None:
        return _override(cls, _defaults(cls, _named_by(words)), words, prog)
    path = find_config(path)
    content = read_extended(path)
    prefix = ""
    if table and isinstance(content.get(table), dict):
        content, prefix = content[table], f"{table}."
    content = {key: value for key, value in content.items() if key not in ignore}
    base = _defaults(cls, {*_named_by(words), *_dotted(content)})
    default = _build(cls, base, content, str(path), prefix)
    return _override(cls, default, words, prog)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values: paths become strings, tuples lists; None stays None."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"expected a dataclass instance, got {config!r}")
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def dump_toml(config: Any) -> str:
    """The config as TOML text that `load_config` reads back to an equal object."""
    import tomli_w  # not at the top, for the same reason as tyro below

    return tomli_w.dumps(_without_none(to_dict(config)))


def config_sha256(config: Any, exclude: Sequence[str] = ()) -> str:
    """Hex SHA-256 of the config's canonical JSON (sorted keys, no spaces).

    Args:
        exclude: dotted keys or sections to leave out, such as names and output directories that
            say where a run goes and not what it computes.

    Raises:
        ValueError: an excluded key does not exist (its removal would be silent otherwise).
    """
    tree = to_dict(config)
    for dotted in exclude:
        *sections, last = dotted.split(".")
        node: Any = tree
        for section in sections:
            node = node.get(section, {}) if isinstance(node, dict) else {}
        if not isinstance(node, dict) or last not in node:
            raise ValueError(f"cannot exclude {dotted!r}: {type(config).__name__} has no such key")
        del node[last]
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _override(cls: type[T], default: Any, words: list[str], prog: str | None) -> T:
    """``default`` (where it is missing, that of ``cls``) with the words of the command line."""
    if not words and default is _MISSING and not _required(cls):
        default = cls()
    if not words and default is not _MISSING:
        return typing.cast(T, default)
    import tyro  # only where there is something to read: `distforge doctor` needs torch alone

    # One flat page of options: a nested optional section must not become a subcommand.
    layout = (tyro.conf.AvoidSubcommands,)
    given = {} if default is _MISSING else {"default": default}
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            return tyro.cli(cls, args=words, prog=prog, config=layout, **given)
        except SystemExit as end:
            if not end.code:
                raise
            wrong = what_is_wrong(words, settings_of(cls, default), prog or "this command")
            raise InputError(wrong or _refusal(end, said.getvalue())) from end


def _refusal(end: SystemExit, said: str) -> str:
    """What a configuration's own check said, with its section; else all that tyro ``said``."""
    error: BaseException | None = end
    while error is not None and not isinstance(error, ValueError):
        error = error.__context__
    section = re.search(r"Error parsing\s+([^\s:]+):", said)
    return f"{section[1]}: {error}" if error and section else str(error or said)


def _defaults(cls: type[Any], named: Collection[str]) -> Any:
    """What goes with the settings that are named, where ``cls`` has something that does."""
    found = cls.for_settings(named) if hasattr(cls, "for_settings") else None
    return _MISSING if found is None else found


def _dotted(table: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The dotted names of all values in a table of tables, and of these."""
    names = {f"{prefix}{key}" for key in table}
    for key, value in table.items():
        if isinstance(value, Mapping):
            names |= _dotted(value, f"{prefix}{key}.")
    return names


def _named_by(words: Sequence[str]) -> set[str]:
    """The dotted names of all options on a command line."""
    options = (word.partition("=")[0] for word in words if word.startswith("--"))
    return {option.removeprefix("--").replace("-", "_") for option in options}


def _required(cls: type[Any]) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.init and default_of(f) is _MISSING]


def _build(cls: type[Any], base: Any, table: Mapping[str, Any], file: str, prefix: str) -> Any:
    """A `cls` from a table, over `base` where the field's owner gave a default."""
    if base is _MISSING or base is None:
        base = _defaults(cls, _dotted(table))
    if base is not _MISSING:
        cls = type(base)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in table:
        if new := _new_name(cls, key):
            raise InputError(f"{file}: {prefix}{key} is called {prefix}{new} now; rename it")
    for key in table:
        if key not in fields:
            _unknown_key(key, fields, file, prefix)
    values = {}
    for key, value in table.items():
        dotted = f"{prefix}{key}"
        current = getattr(base, key) if isinstance(base, cls) else default_of(fields[key])
        values[key] = _convert(value, hints[key], current, file, dotted)
    missing = [name for name in _required(cls) if name not in values]
    if missing and not isinstance(base, cls):
        raise InputError(f"{file}: {prefix}{missing[0]} is required; add it to the file")
    try:
        return dataclasses.replace(base, **values) if isinstance(base, cls) else cls(**values)
    except ValueError as error:
        where = f"[{prefix[:-1]}]" if prefix else "top level"
        raise InputError(f"{file}: {where}: {error}") from error


class UnknownKeyError(InputError):
    """A file has a key that the configuration lacks."""


def _unknown_key(key: str, known: Mapping[str, Any], file: str, prefix: str) -> NoReturn:
    near = difflib.get_close_matches(key.replace("-", "_"), known, n=1, cutoff=0.5)
    remedy = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(known)}"
    raise UnknownKeyError(f"{file}: unknown key {prefix}{key}; {remedy}")


def _convert(value: Any, wanted: Any, current: Any, file: str, dotted: str) -> Any:
    """`value` as read from TOML, as the annotated type `wanted`."""
    origin, args = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return _convert_union(value, args, current, file, dotted)
    if isinstance(value, str) and hasattr(wanted, "SHORT"):
        value = {} if value == _NONE else {wanted.SHORT: value}
    if dataclasses.is_dataclass(wanted) and isinstance(value, dict):
        return _build(typing.cast(type[Any], wanted), current, value, file, f"{dotted}.")
    if origin is Literal and any(value == a and type(value) is type(a) for a in args):
        return value
    if origin is tuple and isinstance(value, list):
        return _convert_tuple(value, args, wanted, file, dotted)
    if origin is dict and isinstance(value, dict):
        return {k: _convert(v, args[1], _MISSING, file, f"{dotted}.{k}") for k, v in value.items()}
    if wanted is float and type(value) in (int, float):
        return float(value)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted in (int, str, bool) and type(value) is wanted:
        return value
    raise InputError(f"{file}: {dotted} = {_show(value)} should be {_type_name(wanted)}")


def _convert_union(
    value: Any, choices: tuple[Any, ...], current: Any, file: str, dotted: str
) -> Any:
    if value == _NONE and types.NoneType in choices:
        return None
    present = [choice for choice in choices if choice is not types.NoneType]
    if len(present) == 1:  # the usual Optional: let the inner error speak, it names the inner key
        return _convert(value, present[0], current, file, dotted)
    for choice in present:
        try:
            return _convert(value, choice, current, file, dotted)
        except InputError:
            continue
    names = " or ".join(map(_type_name, choices))
    raise InputError(f"{file}: {dotted} = {_show(value)} should be {names}")


def _convert_tuple(
    value: list[Any], items: tuple[Any, ...], wanted: Any, file: str, dotted: str
) -> tuple[Any, ...]:
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise InputError(f"{file}: {dotted} = {_show(value)} should be {_type_name(wanted)}")
    pairs = enumerate(zip(value, items, strict=True))
    return tuple(_convert(v, item, _MISSING, file, f"{dotted}[{i}]") for i, (v, item) in pairs)


def _type_name(wanted: Any) -> str:
    """The type in the words of somebody who writes TOML."""
    origin, args = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return "one of " + ", ".join(map(_show, args))
    if origin in (Union, types.UnionType):
        return " or ".join(map(_type_name, args))
    if origin is tuple:
        many = "any number" if args[-1] is Ellipsis else str(len(args))
        return f"a list of {many} of {_type_name(args[0])}"
    if dataclasses.is_dataclass(wanted) or origin is dict:
        return "a table"
    names = {types.NoneType: f'"{_NONE}"', bool: "true or false", int: "an integer"}
    names |= {float: "a number", str: "a string", Path: "a path (string)"}
    return names.get(wanted, str(wanted))


def _show(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _none_word(cls: type[Any], word: str, before: str) -> str:
    """`none` as tyro spells it, where the option it belongs to may be None."""
    option, equals, value = word.partition("=")
    option, value = (option, value) if equals else (before, word)
    if value != _NONE or types.NoneType not in get_args(_type_of(cls, option)):
        return word
    return f"{option}=None" if equals else "None"


def _long_word(cls: type[Any], word: str) -> str:
    """An option that names a section, as that of the field which the section's name stands for."""
    option, equals, value = word.partition("=")
    short = getattr(_type_of(cls, option), "SHORT", None)
    return f"{option}.{short}{equals}{value}" if short else word


def _new_name(cls: type[Any], key: str) -> str:
    """What a field that had this name is called now; empty where none had."""
    return str(getattr(cls, "RENAMED", {}).get(key.replace("-", "_"), ""))


def _refuse_old_name(cls: type[Any], word: str) -> None:
    section, _, key = word.partition("=")[0].rpartition(".")
    wanted = _type_of(cls, section) if section else cls
    if word.startswith("--") and (new := _new_name(wanted, key.removeprefix("--"))):
        now = f"{section}.{new}" if section else f"--{new}"
        raise InputError(f"{word.partition('=')[0]} is called {now.replace('_', '-')} now")


def _type_of(cls: type[Any], option: str) -> Any:
    """The annotated type of what ``--section.some-key`` sets; None where there is no such thing."""
    wanted: Any = cls if option.startswith("--") else None
    for part in option.removeprefix("--").replace("-", "_").split("."):
        sections = [c for c in (wanted, *get_args(wanted)) if dataclasses.is_dataclass(c)]
        if not sections:
            return None
        wanted = typing.get_type_hints(sections[0]).get(part)
    return wanted


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a config field cannot hold {value!r}: it has no TOML form")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return _NONE if value is None else value
