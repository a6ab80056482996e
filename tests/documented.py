"""The commands and the Python that README and docs show, taken out of their text.

A block is indented by four spaces, or fenced. One that cannot be run as it stands has a comment in
front of it, ``<!-- not run: WHY -->``; that comment as the first line below a title holds for the
whole file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))

# What a shell block begins with; other indented blocks are drawings and lists.
_PROGRAMS = ("distforge", "make", "deepspeed", "torchrun", "sbatch", "docker", "python", "pip")
_MARK = re.compile(r"^<!-- not run: (?P<why>.+) -->$")


@dataclass(frozen=True)
class Block:
    """One block. ``why_not``: why it is not run; empty where it is."""

    file: str
    line: int
    language: str  # "shell" or "python"
    text: str
    why_not: str = ""

    @property
    def name(self) -> str:
        """Such as ``docs/judge.md:3``."""
        return f"{self.file}:{self.line}"


def blocks(file: str) -> Iterator[Block]:
    """Those of a file, by its path below the repository."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    whole = next((mark["why"] for line in lines[1:3] if (mark := _MARK.match(line))), "")
    mark, place = "", 0
    while place < len(lines):
        line, start = lines[place], place
        if found := _MARK.match(line):
            mark = found["why"]
        elif line.startswith("```"):
            end = lines.index("```", place + 1)
            language = {"python": "python", "sh": "shell"}.get(line[3:], "")
            if language:
                text = "\n".join(lines[place + 1 : end])
                yield Block(file, start + 1, language, text, mark or whole)
            mark, place = "", end
        elif line.startswith("    ") and not lines[place - 1].strip():
            while place + 1 < len(lines) and lines[place + 1].startswith("    "):
                place += 1
            text = "\n".join(part[4:] for part in lines[start : place + 1])
            if _is_shell(text):
                yield Block(file, start + 1, "shell", text, mark or whole)
            mark = ""
        elif line.strip():
            mark = ""
        place += 1


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a shell block, without what is set in front of it."""
    joined = block.text.replace("\\\n", " ")
    found = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [_without_settings(words) for words in found if words]


def _is_shell(text: str) -> bool:
    first = text.split("\n")[0]
    try:
        words = _without_settings(shlex.split(first.rstrip("\\"), comments=True))
    except ValueError:  # a drawing
        return False
    return bool(words) and words[0] in _PROGRAMS


def _without_settings(words: list[str]) -> list[str]:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words
