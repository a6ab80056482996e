"""The checks that configurations share, and what a failed file operation is made to say."""

import ast
import errno
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from distforge.errors import InputError, explain_file_error, first_line, require_in


@pytest.mark.parametrize(
    "interval,value",
    [
        ("[0, 1)", 0),
        ("(0, 1]", 1.0),
        ("[1, inf)", 10**30),
        # What is switched off by infinity: clipping, a limit, a progress line.
        ("[0, inf]", math.inf),
        ("(-inf, 0)", -1e300),
        ("[1, inf]", np.int64(3)),
    ],
)
def test_what_lies_in_an_interval_passes(interval, value):
    require_in(interval, x=value)


@pytest.mark.parametrize(
    "interval,value,said",
    [
        ("[0, 1)", 1, r"x is 1; expected a number in \[0, 1\)"),
        ("(0, 1]", 0, r"x is 0; expected a number in \(0, 1\]"),
        ("[1, inf)", math.inf, "x is inf; expected at least 1"),
        ("(0, inf)", math.inf, "expected a finite number above 0"),
        ("(0, inf]", 0.0, "x is 0.0; expected a number above 0"),
        ("[0, inf]", math.nan, "x is nan; expected at least 0"),
        ("[0, inf]", True, "x is True"),
        ("[0, inf]", "1", "x is '1'"),
    ],
)
def test_what_does_not_is_named(interval, value, said):
    with pytest.raises(InputError, match=said):
        require_in(interval, x=value)


@pytest.mark.parametrize(
    "error,said",
    [
        (OSError(errno.ENOSPC, "…"), "No space left on device; free space there"),
        (PermissionError(errno.EACCES, "…", "/runs/x"), "/runs/x: Permission denied; give this"),
        (FileNotFoundError(errno.ENOENT, "…", b"a"), "a: No such file or directory; put it there"),
        (OSError(errno.ENOTDIR, "…", "a/b"), "a/b: Not a directory; see that its file system"),
        (Exception("cannot (os error 5)"), "Input/output error; see that the disk is in order"),
        (
            RuntimeError("[enforce fail at inline_container.cc:1] ."),
            "No space left on device; free",
        ),
        (RuntimeError("basic_ios::clear: iostream error"), "No space left on device; free"),
        (
            RuntimeError("unable to open file </m/a> in read-only mode: Input/output error (5)"),
            "/m/a: Input/output error; see that the disk is in order",
        ),
        (
            RuntimeError("unable to mmap 80 bytes from file </x>: Cannot allocate memory (12)"),
            "/x: Cannot allocate memory; free memory, or start fewer processes",
        ),
        (
            RuntimeError("unable to resize file </x> to the right size: … (28)"),
            "/x: No space left on device; free space there",
        ),
        (
            RuntimeError("unable to open shared memory object </t_1> in read-write mode: … (13)"),
            "/t_1: Permission denied; give this user the right to it",
        ),
        # Not about files: of those a traceback tells more.
        (ConnectionRefusedError(errno.ECONNREFUSED, "…"), ""),
        (OSError("no number"), ""),
        (KeyError("os"), ""),
    ],
)
def test_a_file_error_says_where_why_and_what_to_do(error: Exception, said: str) -> None:
    explained = explain_file_error(error)
    assert explained.startswith(said)
    assert bool(explained) is bool(said)


def test_what_safetensors_meets_is_a_file_error(tmp_path: Path) -> None:
    with pytest.raises(safetensors.SafetensorError) as met:
        safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "absent" / "x")
    assert explain_file_error(met.value).startswith("No such file or directory")


def test_what_torch_cannot_map_is_a_file_error(tmp_path: Path) -> None:
    file = tmp_path / "absent"
    with pytest.raises(RuntimeError) as met:
        torch.UntypedStorage.from_file(str(file), shared=False, nbytes=8)
    assert explain_file_error(met.value).startswith(f"{file}: No such file or directory")


def test_a_file_that_safetensors_cannot_open(tmp_path: Path) -> None:
    """It says of any that it is not there, without the system's number."""
    absent = tmp_path / "absent.safetensors"
    with pytest.raises(FileNotFoundError) as met:
        safetensors.safe_open(absent, framework="pt")
    assert explain_file_error(met.value) == (
        f"{absent}: No such file or directory; put it there, or name another"
    )
    absent.mkdir()  # that it is there by now tells what it cannot be
    assert explain_file_error(met.value) == (
        f"{absent}: it could not be opened; see that this user may read it"
    )


def test_a_systems_error_is_told_in_words() -> None:
    assert first_line(FileNotFoundError(2, "No such file or directory", "x")) == (
        "No such file or directory"
    )
    assert first_line(OSError("of a library\nwith a page of advice")) == "of a library"
    assert first_line(ValueError()) == "ValueError"


def test_no_message_has_a_systems_error_as_python_writes_it() -> None:
    """``[Errno 2] No such file or directory: 'x'`` has a number, and the path a second time."""
    found = []
    for file in sorted((Path(__file__).parents[2] / "distforge").rglob("*.py")):
        for handler in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(handler, ast.ExceptHandler) or handler.type is None:
                continue
            caught = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
            if caught.isdisjoint({"OSError", "FileNotFoundError", "PermissionError"}):
                continue
            found += [
                f"{file.name}:{node.lineno}"
                for node in ast.walk(handler)
                if isinstance(node, ast.FormattedValue)
                and isinstance(node.value, ast.Name)
                and node.value.id == handler.name
            ]
    assert found == []
