"""The help of one command: the settings that matter, or all of them, each with its description."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
import tomllib
from collections.abc import Iterable, Sequence
from typing import Any

from distforge.settings import Setting, section_texts, settings_of, summary

HELP = ("-h", "--help")
HELP_ALL = "--help-all"


def help_text(
    cls: type[Any],
    prog: str,
    matter: Sequence[str] = (),
    default: Any = dataclasses.MISSING,
    *,
    everything: bool = False,
) -> str:
    """What ``prog --help`` prints.

    Args:
        cls: the command's configuration.
        matter: dotted names of the settings that most users need; empty shows all.
        default: the configuration whose values are shown as defaults, such as a file's.
        everything: show all settings, as ``--help-all`` does.
    """
    found = settings_of(cls, default)
    positional = [setting for setting in found if setting.positional]
    named = [setting for setting in found if not setting.positional]
    words = [word.option if not word.default else f"[{word.option}]" for word in positional]
    options = ["[--SETTING VALUE ...]"] if named else []
    usage = _usage(["usage:", *prog.split(), *words, "[--config FILE.toml]", *options])
    short = [*positional, *_chosen(named, matter)] if matter and not everything else found
    parts = [usage, *(_wrapped(_plain(line), "") for line in summary(cls).split("\n"))]
    parts += _sections(short, section_texts(cls)) if everything else [_options(short)]
    if len(short) < len(found):
        rest = (
            f"These are {len(short)} of {len(found)} settings; `{prog} {HELP_ALL}` shows all. "
            "Each can be set in a TOML file or on the command line."
        )
        parts.append(_wrapped(rest, ""))
    return "\n\n".join(part for part in parts if part)


def _chosen(found: Iterable[Setting], matter: Sequence[str]) -> list[Setting]:
    by_name = {setting.name: setting for setting in found}
    return [by_name[name] for name in matter if name in by_name]


def _sections(found: Sequence[Setting], texts: dict[str, str]) -> list[str]:
    parts = []
    for section in dict.fromkeys(setting.section for setting in found):
        own = [setting for setting in found if setting.section == section]
        title = f"[{section}] {_plain(texts.get(section, ''))}".strip() if section else ""
        parts.append("\n".join(filter(None, [_wrapped(title, ""), _options(own)])))
    return parts


def _options(found: Iterable[Setting]) -> str:
    return "\n".join(_option(setting) for setting in found)


def _option(setting: Setting) -> str:
    if setting.kind == "yes|no":
        section, dot, last = setting.option.removeprefix("--").rpartition(".")
        head = f"{setting.option}, --{section}{dot}no-{last}"
    else:
        kind = "" if setting.positional else f" {setting.kind}"
        also = f" (or --{setting.short.replace('_', '-')})" if setting.short else ""
        head = f"{setting.option}{kind}{also}"
    default = f"  [{_shown(setting)}]" if setting.default else "  [required]"
    if setting.positional and not setting.default:
        default = ""
    return f"  {head}{default}\n{_wrapped(_plain(setting.text), '      ')}".rstrip()


def _shown(setting: Setting) -> str:
    """The default as it would be typed."""
    value = tomllib.loads(f"value = {setting.default}")["value"]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "empty"
    return str(value) or "empty"


def _plain(text: str) -> str:
    """Without the quotes of code."""
    return text.replace("`", "")


def _usage(words: Sequence[str]) -> str:
    """Wrapped between ``words``, never within one."""
    text = " ".join(word.replace(" ", "\xa0") for word in words)
    return _wrapped(text, "", "    ").replace("\xa0", " ")


def _wrapped(text: str, indent: str, following: str | None = None) -> str:
    width = min(100, max(60, shutil.get_terminal_size((100, 24)).columns))
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent if following is None else following,
        break_on_hyphens=False,
        break_long_words=False,
    )
