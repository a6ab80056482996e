"""Python files of a user's own are run as if they were imported."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from distforge.user_code import run_file

DATACLASS = """
from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import ClassVar


@dataclass
class Verdict:
    known: ClassVar[int] = 3
    words: int = 0


def copied() -> Verdict:
    return pickle.loads(pickle.dumps(Verdict(words=7)))
"""


def test_a_file_may_hold_dataclasses_and_pickle_them(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.py"
    path.write_text(DATACLASS)
    module = run_file(path)
    assert module.copied() == module.Verdict(words=7)
    assert [name for name in module.Verdict.__dataclass_fields__ if name != "known"] == ["words"]


def test_a_file_hides_no_module_and_no_file_of_its_name(tmp_path: Path) -> None:
    found = []
    for folder, value in (("a", 1), ("b", 2)):
        path = tmp_path / folder / "random.py"
        path.parent.mkdir()
        path.write_text(f"value = {value}\n")
        found.append(run_file(path))
    assert [module.value for module in found] == [1, 2]
    assert sys.modules["random"] is random
    assert {sys.modules[module.__name__].value for module in found} == {1, 2}


def test_a_file_that_raises_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("value = 1\nraise OSError('no')\n")
    before = set(sys.modules)
    with pytest.raises(OSError, match="no"):
        run_file(path)
    assert set(sys.modules) == before
