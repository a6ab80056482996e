"""``answers.jsonl`` of a prompt bake: each question with its four answers side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from distforge import durable
from distforge.errors import InputError
from distforge.reports.prompt_summary import AnswerRow

ANSWERS_FILE = "answers.jsonl"
_ROW = TypeAdapter(AnswerRow)


def write_answers(rows: Sequence[AnswerRow], run_dir: Path) -> None:
    """Write the rows, all or none."""
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in rows]
    durable.write_text(run_dir / ANSWERS_FILE, "".join(lines))


def read_answers(run_dir: Path) -> list[AnswerRow]:
    """What `write_answers` wrote; empty where it never did.

    Raises:
        InputError: a line is something else.
    """
    path = run_dir / ANSWERS_FILE
    lines = durable.read_lines(path) if path.is_file() else []
    try:
        return [_ROW.validate_json(line) for line in lines]
    except ValidationError as error:
        raise InputError(
            f"{path} is malformed ({error}); bake the prompt again, which writes it"
        ) from None
