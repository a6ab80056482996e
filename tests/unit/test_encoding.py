"""Text is UTF-8 whatever the locale: in every file that is read or written, and on the terminal."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distforge.data import STRATEGIES

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    ROOT / "setup.py",
    *(
        path
        for room in ("distforge", "launch", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
    ),
]
QUESTION = "Wie viele Äpfel sind 3 + 4 Äpfel? Größe ≤ 10"
# No locale but C is certain to be there, and Python would replace that one, if it were let.
LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def calls_without_encoding(source: str) -> Iterator[int]:
    """Lines of what reads or writes text by the locale's encoding."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and not names_encoding(node):
            decodes = any(
                keyword.arg in ("text", "universal_newlines")
                and isinstance(keyword.value, ast.Constant)
                and keyword.value.value is True
                for keyword in node.keywords
            )
            if decodes or reads_or_writes_text(node):
                yield node.lineno


def names_encoding(call: ast.Call) -> bool:
    given = [*(k.value for k in call.keywords if k.arg == "encoding"), *call.args]
    return any(isinstance(value, ast.Constant) and value.value == "utf-8" for value in given)


def reads_or_writes_text(call: ast.Call) -> bool:
    function, owner = call.func, ""
    if isinstance(function, ast.Attribute):
        name = function.attr
        owner = function.value.id if isinstance(function.value, ast.Name) else ""
        if name in ("read_text", "write_text"):
            return owner != "durable"
    else:
        name = function.id if isinstance(function, ast.Name) else ""
    if name != "open" or owner in ("os", "Image"):
        return False
    modes = [a.value for a in call.args if isinstance(a, ast.Constant)]
    return not any("b" in mode for mode in modes if isinstance(mode, str))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.read_text('utf-8')", False),
        ("Item(text=text)", False),
        ("durable.write_text(path, 'a')", False),
        ("open(path)", True),
        ("path.open('w')", True),
        ("open(path, 'rb')", False),
        ("run(words, text=True)", True),
        ("run(words, text=True, encoding='utf-8')", False),
    ],
)
def test_the_search_finds_them(source: str, found: bool) -> None:
    assert bool(list(calls_without_encoding(source))) is found


def test_no_text_is_in_the_encoding_of_the_locale() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        for line in calls_without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert len(SOURCES) > 200
    assert found == [], 'say encoding="utf-8"'


def distforge(*words: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "distforge.cli", *words]
    return subprocess.run(command, env={**os.environ, **LOCALE}, capture_output=True, timeout=120)


def test_a_question_that_the_locale_has_no_letters_for(tmp_path: Path) -> None:
    row = {
        "question": QUESTION,
        "reasoning": "Drei und vier.",
        "answer": "7",
        "strategy": STRATEGIES[0],
    }
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    shown = distforge("data", "show", "--path", str(data))
    assert shown.stderr == b""
    assert shown.returncode == 0
    assert QUESTION.encode() in shown.stdout
    data.write_text(data.read_text("utf-8") * 2, "utf-8")
    refused = distforge("data", "check", "--path", str(data))
    assert refused.returncode == 2
    assert QUESTION.encode() in refused.stderr
