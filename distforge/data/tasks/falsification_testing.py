"""falsification_testing: a hypothesis falls with its first counterexample; the survivor answers."""

from __future__ import annotations

import random
import re

from distforge.data.tasks.base import LONGEST, Params, Task, draw_three, read, require

LABELS = "ABCDE"


def _holds(clue: str, number: int) -> bool:
    word, *rest = clue.split()
    if word in ("even", "odd"):
        return number % 2 == (word == "odd")
    return number > int(rest[0]) if word == "over" else number < int(rest[0])


class SecretNumber(Task):
    """Candidates and clues: every candidate but one is killed by the first clue that it breaks."""

    name = "secret_number"
    strategy = "falsification_testing"
    share = 2

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        most = 9 if difficulty <= LONGEST else 12
        while True:
            candidates = tuple(rng.sample(range(10, 90), 2 + min(difficulty, LONGEST)))
            secret = rng.choice(candidates)
            low = rng.randint(0, secret // 10 - 1) * 10 + 9
            high = rng.randint(secret // 10 + 1, 9) * 10
            clues = (f"over {low}", f"under {high}", "odd" if secret % 2 else "even")
            if [c for c in candidates if all(_holds(clue, c) for clue in clues)] == [secret]:
                return candidates, clues, rng.randint(2, most)

    def canonical(self, params: Params) -> Params:
        candidates, clues, extra = params
        return tuple(sorted(candidates)), tuple(sorted(clues)), extra

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        candidates, clues, extra = params
        labelled = ",".join(f"{label}{c}" for label, c in zip(LABELS, candidates, strict=False))
        question = (
            f"The secret number is one of {labelled}. "
            f"It is:{','.join(clues)}. What is it plus {extra}?"
        )
        lines, secret = [], 0
        for label, candidate in zip(LABELS, candidates, strict=False):
            told = []
            for clue in clues:
                told.append(f"{clue} {'yes' if _holds(clue, candidate) else 'no'}")
                if told[-1].endswith("no"):
                    break
            secret = candidate if told[-1].endswith("yes") else secret
            lines.append(f"<falsify>{label}{candidate}:{','.join(told)}")
        lines.append(f"<step>{secret} stands<step>{secret}+{extra}={secret + extra}")
        return question, "".join(lines), str(secret + extra)

    def solve(self, question: str) -> str:
        match = read(r"one of ([\dA-E,]+)\. It is:(.+)\. What is it plus (\d+)", question)
        fits = {int(number[1:]) for number in match[1].split(",")}
        for clue in match[2].split(","):
            fits -= {number for number in fits if not _holds(clue, number)}
        require(len(fits) == 1, f"{sorted(fits)} all fit {question!r}")
        return str(fits.pop() + int(match[3]))

    def check_form(self, question: str, reasoning: str) -> None:
        candidates = read(r"one of ([\dA-E,]+)\.", question)[1].split(",")
        told = re.findall(r"<falsify>([A-E]\d+):([^<]+)", reasoning)
        require([c for c, _ in told] == candidates, f"expected a test of each of {candidates}")
        standing = []
        for candidate, tests in told:
            verdicts = [test.rsplit(" ", 1) for test in tests.split(",")]
            for clue, verdict in verdicts:
                right = _holds(clue, int(candidate[1:])) == (verdict == "yes")
                require(right, f"{candidate}: {clue!r} is not {verdict!r}")
            if verdicts[-1][1] == "yes":
                standing.append(candidate[1:])
        end = re.search(r"<step>(\S+) stands<step>\1\+\d+=\d+$", reasoning)
        require(end is not None and [end[1]] == standing, f"the trace ends without {standing}")


class SequenceRule(Task):
    """Three rules for a sequence: the step that is seen kills all but one, which goes on."""

    name = "sequence_rule"
    strategy = "falsification_testing"

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        start, ahead = rng.randint(1, 9), 1 + min(difficulty, LONGEST)
        steps = draw_three(rng, difficulty)
        return start, steps, rng.choice(steps), ahead

    def canonical(self, params: Params) -> Params:
        start, _, truth, ahead = params
        return start, truth, ahead

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        start, steps, truth, ahead = params
        shown = [start, start + truth, start + 2 * truth]
        rules = ", ".join(f"{label} +{step}" for label, step in zip("PQR", steps, strict=True))
        question = (
            f"Sequence:{','.join(map(str, shown))}. Rules: {rules}. "
            f"Give the term {ahead} further on."
        )
        lines = [f"<step>{start + truth}-{start}={truth}"]
        for label, step in zip("PQR", steps, strict=True):
            lines.append(f"<falsify>{label}:{step} seen {truth} {'yes' if step == truth else 'no'}")
        term = shown[-1]
        for number in range(1, ahead + 1):
            lines.append(f"<step>{number}:{term}+{truth}={term + truth}")
            term += truth
        return question, "".join(lines), str(term)

    def solve(self, question: str) -> str:
        match = read(r"Sequence:(\d+),(\d+),(\d+)\..* term (\d+) further", question)
        first, second, third, ahead = map(int, match.groups())
        require(third - second == second - first, f"no constant difference in {question!r}")
        return str(third + ahead * (second - first))

    def check_form(self, question: str, reasoning: str) -> None:
        first, second = map(int, read(r"Sequence:(\d+),(\d+),", question).groups())
        asked = re.findall(r"([PQR]) \+(\d+)", question)
        told = re.findall(r"<falsify>([PQR]):(\d+) seen (\d+) (yes|no)", reasoning)
        require(
            [(label, step) for label, step, _, _ in told] == asked, f"expected tests of {asked}"
        )
        for label, step, seen, verdict in told:
            require(int(seen) == second - first, f"the step seen is {second - first}")
            require((step == seen) == (verdict == "yes"), f"{label} is judged wrongly")


TASKS: tuple[Task, ...] = (SecretNumber(), SequenceRule())
