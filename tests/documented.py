"""The commands and the Python that README and docs show, taken out of their text.

A block is indented by four spaces, or fenced. What stands in a comment in front of it is not shown
to a reader:

- ``<!-- not run: WHY -->``: it needs a GPU, a second host or an account somewhere.
- ``<!-- run by: tests/end_to_end/test_X.py -->``: that test takes it from here and runs it.
- ``<!-- first:``, lines, ``-->``: Python that defines what a reader already has.

Python that a page introduces by "`NAME.py`:" is also that file for the page's commands.
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
_PROGRAMS = (
    *("distforge", "make", "deepspeed", "torchrun", "sbatch", "docker", "python", "pip"),
    *("ray", "export", "launch/keep_running.sh"),
)
_MARK = re.compile(r"<!-- (?P<kind>not run|run by|first): *\n?(?P<value>.*?)\s*-->", re.DOTALL)
_SAVED = re.compile(r"`(?P<name>\w+\.py)`:$")
_INLINE = re.compile(r"(?<!`)`(distforge [a-z][^`]*)`")


@dataclass(frozen=True)
class Block:
    """One block.

    why_not: why it is not run. run_by: the test that runs it. first: what is run before it.
    saved_as: the file that a reader puts it into. All are empty where they do not apply.
    """

    file: str
    line: int
    language: str  # "shell" or "python"
    text: str
    why_not: str = ""
    run_by: str = ""
    first: str = ""
    saved_as: str = ""

    @property
    def name(self) -> str:
        """Such as ``docs/judge.md:3``."""
        return f"{self.file}:{self.line}"


def blocks(file: str) -> Iterator[Block]:
    """Those of a file, by its path below the repository."""
    return parse((ROOT / file).read_text(encoding="utf-8"), file)


def parse(text: str, file: str) -> Iterator[Block]:
    """The blocks in the text of a page."""
    lines = text.splitlines()
    before, place = "", 0  # what was read since the block before
    while place < len(lines):
        kind, end = _kind_and_end(lines, place)
        part, start, place = lines[place:end], place, end
        if kind == "fenced":
            language = {"python": "python", "sh": "shell"}.get(part[0][3:], "")
            body = "\n".join(part[1:-1])
        elif kind == "indented":
            body = "\n".join(line[4:] for line in part)
            language = "shell" if _is_shell(body) else ""
        else:
            before += "\n".join(part) + "\n"
            continue
        if language:
            yield Block(file, start + 1, language, body, **_said_before(before))
        before = ""


def _kind_and_end(lines: list[str], start: int) -> tuple[str, int]:
    """Whether a block begins at a line, "fenced" or "indented", and the line after its end."""
    rest = range(start, len(lines))
    if lines[start].startswith("<!--"):
        return "", next(place for place in rest if "-->" in lines[place]) + 1
    if lines[start].startswith("```"):
        return "fenced", lines.index("```", start + 1) + 1
    if lines[start].startswith("    ") and not lines[start - 1].strip():
        return "indented", next((n for n in rest if not lines[n].startswith("    ")), len(lines))
    return "", start + 1


def _said_before(text: str) -> dict[str, str]:
    """What the last paragraph and the comments below it say of a block."""
    marks = list(_MARK.finditer(text))
    found = {mark["kind"]: mark["value"] for mark in marks if not _prose(text[mark.end() :])}
    saved = _SAVED.search(_MARK.sub("", text).strip())
    return {
        "why_not": found.get("not run", ""),
        "run_by": found.get("run by", ""),
        "first": found.get("first", ""),
        "saved_as": saved["name"] if saved else "",
    }


def _prose(text: str) -> str:
    return _MARK.sub("", text).strip()


def lines_of(block: Block) -> list[str]:
    """The command lines of a shell block, continued ones joined."""
    return [line for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]


def command(file: str, beginning: str) -> str:
    """The one command line of a page that is this, or else the one that begins so."""
    shell = (block for block in blocks(file) if block.language == "shell")
    lines = [" ".join(line.split(" #")[0].split()) for block in shell for line in lines_of(block)]
    bare = {re.sub(r"^([A-Z_]+=\S+ +)+", "", line): line for line in lines}
    if beginning in bare:
        return bare[beginning]
    [found] = [line for words, line in bare.items() if words.startswith(beginning)]
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a shell block, without what is set in front of it."""
    found = [shlex.split(line, comments=True) for line in lines_of(block)]
    return [_without_settings(words) for words in found if words]


def inline_commands(file: str) -> list[str]:
    """Commands of distforge that a page names in its sentences and tables."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return [" ".join(found.split()) for found in _INLINE.findall(text)]


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
