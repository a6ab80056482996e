"""What is wrong with the words of a command line, in the words that its help uses."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from distforge.settings import Setting

_SWITCH = "yes|no"
_ALWAYS = ("--config", "--help", "--help-all")
_KINDS = {"INT": "a whole number", "NUMBER": "a number", "TEXT": "a text", "PATH": "a path"}


def what_is_wrong(words: Sequence[str], settings: Iterable[Setting], prog: str) -> str:
    """The first thing that keeps ``words`` from being settings; empty where none is found.

    Args:
        words: what follows the command's name.
        settings: those of the command.
        prog: its name, such as ``distforge bake``.
    """
    found = list(settings)
    options = {option: setting for setting in found for option in _options(setting)}
    given, loose = set[str](), list[tuple[str, str]]()
    for option, values in _portions(words):
        name = option.replace("_", "-")
        if option and name not in options:
            return _unknown(name, options, found, prog)
        room = _room(options[name], values) if option else 0
        if option:
            given.add(options[name].name)
            if wrong := _wrong_value(name, options[name], values[:room]):
                return wrong
        loose += [(value, option) for value in values[room:]]
    places = [setting for setting in found if setting.positional]
    if len(loose) > len(places):
        return _too_many(*loose[len(places)], options, prog)
    for setting, (value, _) in zip(places, loose, strict=False):
        given.add(setting.name)
        if wrong := _wrong_value(setting.option, setting, [value]):
            return wrong
    lacking = [setting for setting in found if not setting.default and setting.name not in given]
    return _needs(lacking, prog) if lacking else ""


def _options(setting: Setting) -> list[str]:
    if setting.positional:
        return []
    if setting.kind != _SWITCH:
        return [setting.option]
    return [setting.option, _opposite(setting)]


def _opposite(setting: Setting) -> str:
    section, dot, last = setting.option.removeprefix("--").rpartition(".")
    return f"--{section}{dot}no-{last}"


def _portions(words: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with the words behind it; an empty one for those in front of the first."""
    option, values = "", list[str]()
    for word in words:
        if word.startswith("--") or (word.startswith("-") and word[1:2].isalpha()):
            yield option, values
            option, has_value, value = word.partition("=")
            values = [value] if has_value else []
        else:
            values.append(word)
    yield option, values


def _room(setting: Setting, values: Sequence[str]) -> int:
    """How many of the words behind an option are its own."""
    if setting.kind == _SWITCH:
        return 0
    return len(values) if setting.kind.endswith(" ...") else len(setting.kind.split())


def _wrong_value(option: str, setting: Setting, values: Sequence[str]) -> str:
    kinds = setting.kind.removesuffix(" ...").split()
    if setting.kind != _SWITCH and not setting.kind.endswith(" ...") and len(values) < len(kinds):
        return f"{option} has no value; expected {_expected(kinds[0])} behind it"
    for place, value in enumerate(values):
        kind = kinds[place % len(kinds)]
        if not any(_fits(value, choice) for choice in kind.split("|")):
            return f"{option} is {value!r}; expected {_expected(kind)}"
    return ""


def _fits(value: str, choice: str) -> bool:
    if choice in ("INT", "NUMBER"):
        try:
            int(value) if choice == "INT" else float(value)
        except ValueError:
            return False
        return True
    # What is written in capitals has no check but the configuration's own.
    return choice.isupper() or value == ("None" if choice == "none" else choice.strip('"'))


def _expected(kind: str) -> str:
    choices = [_KINDS.get(choice, choice) for choice in kind.split("|")]
    return f"one of {', '.join(choices)}" if len(choices) > 2 else " or ".join(choices)


def _unknown(name: str, options: Collection[str], found: Iterable[Setting], prog: str) -> str:
    for setting in found:
        if setting.kind.startswith("TABLE") and name.startswith(f"{setting.option}."):
            return (
                f"{name} cannot be set: there is no {setting.name} here; give one, as a table of "
                "a file, by --config FILE.toml"
            )
    meant = _meant(name, options)
    if meant:
        return f"unknown option {name}; did you mean {' or '.join(meant)}?"
    return f"unknown option {name}; `{prog} --help-all` describes all"


def _meant(name: str, options: Collection[str]) -> list[str]:
    """A slip of the finger, or else a setting without its section, or without half of its name."""
    known = [option.removeprefix("--") for option in (*_ALWAYS, *options)]
    given = name.lstrip("-")
    *_, last = given.split(".")
    meant = (
        difflib.get_close_matches(given, known, n=1, cutoff=0.85)
        or [option for option in known if option.split(".")[-1] == last]
        or difflib.get_close_matches(given, known, n=1)
        or [option for option in known if option.endswith(f"-{last}")]
    )
    return [f"--{option}" for option in sorted(meant, key=lambda option: option.count("."))[:3]]


def _too_many(word: str, option: str, options: Mapping[str, Setting], prog: str) -> str:
    setting = options.get(option.replace("_", "-"))
    if setting is not None and setting.kind == _SWITCH:
        rest = f"{setting.option} takes no value, and its opposite is {_opposite(setting)}"
    else:
        rest = f"`{prog} --help` shows what it takes"
    return f"{word!r} is one word too many; {rest}"


def _needs(lacking: Sequence[Setting], prog: str) -> str:
    wanted = " and ".join(
        setting.option if setting.positional else f"{setting.option} {setting.kind}"
        for setting in lacking
    )
    text = lacking[0].text.replace("`", "").rstrip(".")
    return f"`{prog}` needs {wanted}{f' ({text})' if text and len(lacking) == 1 else ''}"
