"""The example notebooks, made of the pages that say the same: ``python docs/notebooks.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
# Of which page each is made, and of which section of it; of all where that is empty.
NOTEBOOKS = {
    "bake_a_prompt": ("bake-a-prompt.md", ""),
    "reward_your_own_questions": ("reinforce.md", "A question and a reward"),
}
_COMMENT = re.compile(r"<!--.*?-->\n*", re.DOTALL)
_BLOCK = re.compile(r"^```python\n((?:.*\n)*?)```\n|^((?:    .+\n)+)", re.MULTILINE)
_SAVED = re.compile(r"`(\w+\.py)`:\s*$")


def notebook(page: str, section: str) -> str:
    """The text of a notebook, JSON."""
    text = _COMMENT.sub("", (DOCS / page).read_text(encoding="utf-8"))
    if section:
        [text] = [part for part in text.split("\n## ") if part.startswith(f"{section}\n")]
        text = f"# {text}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {
        "cells": list(_cells(text)),
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 4,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _cells(text: str) -> Iterator[dict[str, Any]]:
    """Prose, commands (``!distforge …``), Python, and files that the commands need."""
    end, said = 0, ""
    for block in _BLOCK.finditer(text):
        said = text[end : block.start()].strip()
        if said:
            yield _cell("markdown", said)
        python, commands, saved = block[1], block[2], _SAVED.search(said)
        if commands:
            lines = [" ".join(line.split()) for line in commands.replace("\\\n", " ").splitlines()]
            yield _cell("code", "\n".join(f"!{line}" for line in lines if line[0] != "#"))
        else:
            yield _cell("code", f"%%writefile {saved[1]}\n{python}" if saved else python)
        end = block.end()
    if rest := text[end:].strip():
        yield _cell("markdown", rest)


def _cell(kind: str, text: str) -> dict[str, Any]:
    cell = {"cell_type": kind, "metadata": {}, "source": text.strip().splitlines(keepends=True)}
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}


if __name__ == "__main__":
    for name, (page, section) in NOTEBOOKS.items():
        (DOCS / "examples" / f"{name}.ipynb").write_text(notebook(page, section), encoding="utf-8")
