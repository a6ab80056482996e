"""``distforge completion``: what a shell needs to complete commands and options."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from distforge.cli import COMMANDS
from distforge.extras import MissingExtra
from distforge.help import HELP_ALL
from distforge.settings import Setting, settings_of

_ALWAYS = ("--config", "--help", HELP_ALL)
_BASH = """\
_distforge() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} offered=
    local command=${{COMP_WORDS[1]}}
    if [ "$COMP_CWORD" -gt 1 ]; then
        case "$command" in
            {groups}) [ "$COMP_CWORD" -gt 2 ] && command="$command ${{COMP_WORDS[2]}}" ;;
        esac
    else
        command=
    fi
    case "$command" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$offered" -- "$current"))
}}
complete -o default -F _distforge distforge
"""
_ZSH = "#compdef distforge\nautoload -U +X bashcompinit && bashcompinit\n"


@dataclass(frozen=True)
class CompletionConfig:
    """Print a script that completes commands and options in a shell.

    For bash: ``distforge completion bash > ~/.local/share/bash-completion/completions/distforge``.
    For zsh: put ``source <(distforge completion zsh)`` into ~/.zshrc, behind compinit.

    shell: bash or zsh.
    """

    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional]


def completion(config: CompletionConfig) -> int:
    """Print it."""
    print((_ZSH if config.shell == "zsh" else "") + _script(), end="")
    return 0


def _script() -> str:
    """Offers the words that may follow, by what stands before them."""
    first = dict.fromkeys(name.split()[0] for name in COMMANDS)
    groups = [name for name in first if name not in COMMANDS]
    following = {"": [*first, "help"]}
    following |= {
        group: [name.split()[1] for name in COMMANDS if name.startswith(f"{group} ")]
        for group in groups
    }
    following |= {name: [*_ALWAYS, *_options(name)] for name in COMMANDS}
    cases = [
        f'        "{name}") offered="{" ".join(words)}" ;;' for name, words in following.items()
    ]
    return _BASH.format(groups="|".join(groups), cases="\n".join(cases))


def _options(name: str) -> list[str]:
    command = COMMANDS[name]
    try:
        module = importlib.import_module(f"distforge.commands.{command.module}")
    except MissingExtra:
        return []
    found = settings_of(getattr(module, command.config))
    return [word for setting in found if not setting.positional for word in _words(setting)]


def _words(setting: Setting) -> list[str]:
    return [setting.option, *([f"--{setting.short}"] if setting.short else [])]
