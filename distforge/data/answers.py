"""Where a text's answer stands, and whether two answers are the same: compared as numbers where
they are numbers, as formulas where they are formulas, else as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from distforge.data import symbolic

ANSWER = "Answer:"
# Where a model that was not stopped asks itself the next question.
_RUN_ON = re.compile(r"\n\s*Question:")
_MARK = re.compile(rf"{ANSWER}|####|\\boxed\s*\{{")
# Around an answer, not of it: bold, code, TeX's mathematics, a full stop.
_AROUND = re.compile(r"^(?:[*_`\s]|\\[\[(]|\$(?=.*\$\.?$))+|(?:[*_`\s.]|\\[\])]|\$)+$", re.DOTALL)
_SPELLINGS = (
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"(?<![\d}\s])\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r"\1/\2"),
    (re.compile(r"\\[,!;: ]"), ""),
    (re.compile(r"\\(?=[$%])"), ""),
)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,18})"
_NUMBER = re.compile(
    rf"(?P<sign>[-+−]?)\s*\$?\s*(?P<minus>[-−]?)(?P<whole>{_DIGITS})?(?P<part>\.\d{{1,18}})?\.?"
    rf"(?:\s*/\s*(?P<below>{_DIGITS}))?(?:\s*(?P<percent>%))?"
)
# Behind a number: it is part of something else, as in 2x, 3:30, 4^2, 3 1/2 or 10 + 8.
_GOES_ON = re.compile(
    r"[\d^(\\_]|[.,:]\d|[a-zA-Z](?<![mghskL])(?![a-zA-Z])|\s*[+*/^=×÷]|\s*[-−]\s*[\d($]|\s+\d+\s*/"
)
_FORMULA = re.compile(r"\\[a-zA-Z]+|[\^=]|\d\s*[a-z]\b|[a-z]\s*[-+*/(]|sqrt|[\[(]\s*-?[\d.]+\s*,")
_WRITTEN_AS_FORMULA = re.compile(r"\\[a-zA-Z]+|\^|sqrt")
# Of a line that is looked through for numbers.
_LONGEST_LINE = 2000


@dataclass(frozen=True)
class Comparison:
    """Whether two answers are the same, and by what that was decided, in words."""

    same: bool
    why: str


@dataclass(frozen=True)
class _Number:
    value: Fraction
    is_percent: bool = False

    def equals(self, other: _Number) -> bool:
        """18% is 18, in a question about percentages, or 0.18."""
        if self.value == other.value or self.is_percent == other.is_percent:
            return self.value == other.value
        percent, plain = (self, other) if self.is_percent else (other, self)
        return percent.value / 100 == plain.value


def find_answer(text: str) -> tuple[str, str] | None:
    """What stands before a text's answer, and the answer; None where nothing marks one.

    The last of ``Answer:``, ``####`` and ``\\boxed{…}`` marks it. Of a box, what stands before is
    the whole text.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        return None
    mark = marks[-1]
    if mark[0].startswith("\\"):
        return text, _inside(text, mark.end())
    return text[: mark.start()], text[mark.end() :].strip()


def extract_answer(generated: str) -> str | None:
    """The answer that a model wrote, without the questions that it then asked itself; None where
    nothing marks one."""
    found = find_answer(_RUN_ON.split(generated.lstrip(), maxsplit=1)[0])
    return None if found is None else found[1]


def same_answer(given: str, truth: str) -> bool:
    """Whether two answers agree; see `compare`."""
    return compare(given, truth).same


def compare(given: str, truth: str) -> Comparison:
    """Whether ``given``, which may run on, is the answer ``truth``.

    Numbers are compared exactly: 1,000 is 1000.0, 6/14 is 3/7, $18 is 18, and 18% is 18 or 0.18.
    Formulas are compared by math-verify where it is installed. All else is text: letter case,
    spaces, bold and a full stop do not count.
    """
    wanted = parse_number(truth)
    if wanted is not None:
        return _as_numbers(given, wanted, truth)
    if _plain(given) == _plain(truth) or _plain(_first_line(given)) == _plain(truth):
        return Comparison(True, "the texts are equal")
    if answer_kind(truth) == "formulas":
        return _as_formulas(given, truth)
    return Comparison(False, "the texts differ")


def _as_numbers(given: str, wanted: _Number, truth: str) -> Comparison:
    line = _first_line(given)
    said = _bare(line.rpartition("=")[2])
    found = parse_number(said)
    if found is None and _WRITTEN_AS_FORMULA.search(said):
        return _as_formulas(line, truth)
    found = found or _leading_number(said)
    if found is None:
        return Comparison(False, "it gives no number, or several")
    same = found.equals(wanted)
    return Comparison(same, f"the numbers are {'equal' if same else 'not equal'}")


def _as_formulas(given: str, truth: str) -> Comparison:
    equal = symbolic.equal(_first_line(given), truth)
    if equal is None:
        return Comparison(False, f"the texts differ, and the formulas {symbolic.why_not()}")
    return Comparison(equal, f"the formulas are {'equal' if equal else 'not equal'}")


def answer_kind(answer: str) -> str:
    """What `compare` takes an answer for: "numbers", "formulas" or "text"."""
    if parse_number(answer) is not None:
        return "numbers"
    return "formulas" if _FORMULA.search(answer) else "text"


def parse_number(text: str) -> _Number | None:
    """A text that is a number and nothing else: thousands with commas, a fraction, a dollar sign
    in front, a per cent sign behind; None otherwise, as of more than 18 digits."""
    text = _bare(text)
    match = _NUMBER.fullmatch(text)
    return _value(match) if match else None


def _leading_number(line: str) -> _Number | None:
    """The number that a line begins with, or the only one in it."""
    found = [match for match in _NUMBER.finditer(line) if _value(match) is not None]
    if not found or _GOES_ON.match(line, found[0].end()):
        return None
    first = found[0]
    before = line[: first.start("whole") if first["whole"] else first.start("part")]
    alone = len(found) == 1 and not re.search(r"[\w^*/+\\]$|\w[-−($]$", before)
    return _value(first) if alone or not before.strip("$-−+ ") else None


def _value(match: re.Match[str]) -> _Number | None:
    whole, part, below = match["whole"], match["part"], match["below"]
    if not whole and not part:
        return None
    value = Fraction(f"{(whole or '0').replace(',', '')}{part or ''}")
    if below is not None:
        bottom = int(below.replace(",", ""))
        if not bottom:
            return None
        value /= bottom
    minus = (match["sign"] in ("-", "−")) != bool(match["minus"])
    return _Number(-value if minus else value, match["percent"] is not None)


def _bare(text: str) -> str:
    """Without what stands around an answer, and without TeX's spelling of plain things."""
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    return _AROUND.sub("", text.strip())


def _plain(text: str) -> str:
    return " ".join(_bare(text).casefold().split())


def _first_line(text: str) -> str:
    """The first line that says something; of a box, what is in it."""
    line = next((line for line in text.split("\n") if _bare(line)), "")[:_LONGEST_LINE]
    box = re.search(r"\\boxed\s*\{", line)
    return _inside(line, box.end()) if box else line


def _inside(text: str, start: int) -> str:
    """From ``start`` to the brace that closes the one before it."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[start:place].strip()
    return text[start:].strip()
