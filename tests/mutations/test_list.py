"""The list of faults fits the tree: each can be planted, and each names tests that exist."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutations.plant import ROOT, Fault, failures, read_faults

FAULTS = read_faults()


def test_thirty_faults_have_names_of_their_own() -> None:
    assert len(FAULTS) >= 30
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits_its_file_and_changes_what_it_says(fault: Fault) -> None:
    whole = (ROOT / fault.file).read_text(encoding="utf-8")
    broken = fault.planted(whole)  # refuses a text that does not stand there exactly once
    assert fault.native == fault.file.startswith("csrc/")
    if fault.file.endswith(".py"):
        assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(whole))
    else:
        assert broken != whole


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_names_tests_that_exist(fault: Fault) -> None:
    assert fault.tests
    for test in fault.tests:
        name, _, function = test.partition("::")
        assert Path(name).name.startswith("test_")
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert not function or function in defined, test


def test_a_text_that_stands_twice_or_nowhere_is_refused() -> None:
    fault = Fault("one", "a.py", "x = 1", "x = 2", "why", ("test_a.py",))
    assert fault.planted("x = 1\ny = 1\n") == "x = 2\ny = 1\n"
    for text in ("x = 1\nx = 1\n", "y = 1\n"):
        with pytest.raises(ValueError, match=r"one: .* in a\.py, expected once"):
            fault.planted(text)


def test_failures_are_read_from_the_summary_of_pytest() -> None:
    said = (
        "F\n=== short test summary info ===\n"
        "FAILED tests/test_a.py::test_b[all, 3] - AssertionError: 1 - 2\n"
        "ERROR tests/test_c.py::test_d\n1 failed, 1 error in 0.1s\n"
    )
    assert failures(said) == ["tests/test_a.py::test_b[all, 3]", "tests/test_c.py::test_d"]
