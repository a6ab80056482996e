"""A server's SQLite files appear whole or not at all; the real ones are made in tests/faults."""

from pathlib import Path

import pytest

from distforge import durable
from distforge.errors import InputError
from distforge.registry.server_databases import make_databases


def interpreter(tmp_path: Path, *lines: str) -> str:
    """What takes Python's place: it is called with -c, a script, the kind and the file."""
    file = tmp_path / "python"
    file.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    file.chmod(0o755)
    return str(file)


def test_what_is_not_there_is_made_once(tmp_path: Path) -> None:
    models, users = tmp_path / "a" / "registry.db", tmp_path / "a" / "users.db"
    python = interpreter(tmp_path, 'echo "$3" > "$4"')
    make_databases(python, {"models": models, "users": users})
    assert (models.read_text(), users.read_text()) == ("models\n", "users\n")
    users.write_text("used")
    make_databases(interpreter(tmp_path, "exit 1"), {"models": models, "users": users})
    assert users.read_text() == "used"


def test_nothing_is_left_of_half_a_migration(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    python = interpreter(tmp_path, 'echo half > "$4"', "echo Error: no such table >&2", "exit 1")
    with pytest.raises(InputError, match=r"registry\.db cannot be made .*: Error: no such table"):
        make_databases(python, {"models": file})
    assert not list(tmp_path.glob("*registry.db*"))


def test_what_a_kill_left_is_not_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    partial = durable.temporary(file)
    journal = partial.with_name(f"{partial.name}-journal")
    for left in (partial, journal):
        left.write_text("half")
    python = interpreter(tmp_path, f'[ -e "{journal}" ] || [ -e "$4" ] || echo whole > "$4"')
    make_databases(python, {"models": file})
    assert file.read_text() == "whole\n"
    assert not journal.exists()
