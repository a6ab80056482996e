"""Which answers are the same: numbers as numbers, formulas as formulas, all else as text."""

import time
from fractions import Fraction

import pytest

from distforge.data import symbolic
from distforge.data.answers import answer_kind, compare, extract_answer, parse_number, same_answer

RIGHT = [
    ("1,000", "1000"),
    ("1000.0", "1,000"),
    ("$1,080.00", "1080"),
    ("-$5", "-5"),
    ("−5", "-5"),
    ("5.", "5"),
    ("3.50", "7/2"),
    ("6/14", "3/7"),
    (r"$\dfrac{6}{14}$", "3/7"),
    ("18%", "18"),
    ("18%", "0.18"),
    ("0.18", "18%"),
    # Run on, on the next line, in bold, in code, in TeX, with its unit or its arithmetic.
    ("18\nSo that is how many.", "18"),
    ("\n18", "18"),
    ("**18**", "18"),
    ("**18** dollars", "18"),
    ("`18`", "18"),
    (r"$\boxed{18}$.", "18"),
    (r"18\text{ dollars}", "18"),
    ("18km", "18"),
    ("$18 per day", "18"),
    ("18 (eighteen)", "18"),
    ("The answer is 18.", "18"),
    ("$10 + $8 = $18", "18"),
    ("x = 5", "5"),
    ("**Paris**.", "paris"),
    ("Paris\nIt lies on the Seine.", "Paris"),
    ("two\nlines", "two lines"),
]
WRONG = [
    ("0.18", "18"),
    ("1800", "18"),
    ("18/5", "18"),
    ("10 + 8", "10"),
    ("2x", "2"),
    ("2^3", "2"),
    ("3:30", "3"),
    ("3 1/2", "3"),
    ("17 or 18", "18"),
    ("1234567890123456788", "1234567890123456789"),
    ("two", "2"),
    ("", "18"),
    ("London", "Paris"),
    ("Paris or London", "Paris"),
]


@pytest.mark.parametrize(("given", "truth"), RIGHT)
def test_a_right_answer_is_right_however_it_is_written(given: str, truth: str) -> None:
    assert same_answer(given, truth)


@pytest.mark.parametrize(("given", "truth"), WRONG)
def test_another_answer_is_wrong(given: str, truth: str) -> None:
    assert not same_answer(given, truth)


def test_numbers_are_exact() -> None:
    third = parse_number("0.333333333333333333")
    assert third is not None
    assert third.value == Fraction(333333333333333333, 10**18)
    assert not same_answer("0.333333333333333333", "1/3")
    assert parse_number("1/0") is None
    assert parse_number("1,00") is None


def test_where_the_answer_stands() -> None:
    assert extract_answer("so 9 are left\n#### 18") == "18"
    assert extract_answer(r"so \boxed{x^{2}} it is") == "x^{2}"
    assert extract_answer("Answer: 3\nAnswer: 4") == "4"
    # The model that nobody stopped goes on with a question of its own.
    assert extract_answer("Answer: 18\nQuestion: what is 3+4?\nAnswer: 7") == "18"
    assert extract_answer("18") is None


def test_why_is_said() -> None:
    assert compare("18", "18.0").why == "the numbers are equal"
    assert compare("17", "18").why == "the numbers are not equal"
    assert compare("many", "18").why == "it gives no number, or several"
    assert compare("London", "Paris").why == "the texts differ"


def test_kinds_of_answers() -> None:
    kinds = [answer_kind(text) for text in ("1,000", r"\frac{\sqrt{2}}{2}", "x^2+1", "on the mat")]
    assert kinds == ["numbers", "formulas", "formulas", "text"]


@pytest.mark.parametrize(
    ("given", "truth", "same"),
    [
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
        ("x^2+2*x+1", "(x+1)^2", True),
        (r"\sqrt{16}", "4", True),
        (r"\sqrt{17}", "4", False),
        ("x^2", "x^3", False),
    ],
)
def test_formulas_are_compared_as_mathematics(given: str, truth: str, same: bool) -> None:
    pytest.importorskip("math_verify")
    assert same_answer(given, truth) is same


def test_formulas_without_the_library_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolic, "available", lambda: False)
    assert same_answer("x^2", "x^2")
    outcome = compare("x*x", "x^2")
    assert not outcome.same
    assert "pip install 'distforge[math]'" in outcome.why


def test_a_formula_that_takes_for_ever_is_given_up(monkeypatch, tmp_path) -> None:
    """In a process that answers once and then never again, as arithmetic that no signal ends."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import sys\n"
        "sys.stdin.readline(); print('ready', flush=True)\n"
        "sys.stdin.readline(); print('true', flush=True)\n"
        "for line in sys.stdin: pass\n"
    )
    monkeypatch.setattr(symbolic, "available", lambda: True)
    monkeypatch.setattr(symbolic, "_WORKER", worker)
    symbolic.close()
    try:
        assert symbolic.equal("x", "x", deadline=30) is True
        began = time.monotonic()
        assert symbolic.equal("x", "x", deadline=0.2) is None
        assert time.monotonic() - began < 30
        # The next one has a new process.
        assert symbolic.equal("x", "x", deadline=30) is True
    finally:
        symbolic.close()
