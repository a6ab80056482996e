"""expert_perspective: an expert names the rule, then substitutes."""

from __future__ import annotations

import random
from fractions import Fraction

from distforge.data.tasks.base import Params, Task, read, require

PACKS = {
    "weeks": ("days", 7),
    "crates": ("cans", 6),
    "teams": ("players", 9),
    "sets": ("cups", 8),
}


def check_rule(reasoning: str, expert: str, rule: str) -> None:
    begin = f"<expert>{expert}:{rule}<step>"
    require(reasoning.startswith(begin), f"expected the trace to begin with {begin!r}")


class SpeedChange(Task):
    """Kinematics: v = u + a*t while accelerating, v = u - a*t while braking."""

    name = "speed_change"
    strategy = "expert_perspective"

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        while True:
            start, gain, seconds = rng.randint(2, 29), rng.randint(2, 6), rng.randint(2, 6)
            brake, slowing = rng.randint(2, 3 + difficulty), rng.randint(2, 3 + difficulty)
            if brake * slowing <= start + gain * seconds:
                return start, gain, seconds, brake, slowing

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        start, gain, seconds, brake, slowing = params
        question = (
            f"A car at speed {start} gains {gain} a second for {seconds} seconds, "
            f"then brakes by {brake} a second for {slowing} seconds. What is its speed?"
        )
        fast, slow = start + gain * seconds, brake * slowing
        reasoning = (
            f"<expert>physicist:v=u+a*t<step>{gain}*{seconds}={gain * seconds}"
            f"<step>{start}+{gain * seconds}={fast}"
            f"<step>{brake}*{slowing}={slow}<step>{fast}-{slow}={fast - slow}"
        )
        return question, reasoning, str(fast - slow)

    def solve(self, question: str) -> str:
        match = read(
            r"speed (\d+) gains (\d+) a second for (\d+) seconds, "
            r"then brakes by (\d+) a second for (\d+) seconds",
            question,
        )
        start, gain, seconds, brake, slowing = map(int, match.groups())
        return str(start + sum([gain] * seconds) - sum([brake] * slowing))

    def check_form(self, question: str, reasoning: str) -> None:
        check_rule(reasoning, "physicist", "v=u+a*t")


class LinearEquation(Task):
    """Algebra: from a*x+b=c to x=(c-b)/a, then the value of another line at that x."""

    name = "linear_equation"
    strategy = "expert_perspective"

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        high = 4 + 2 * difficulty
        factor, x, offset = rng.randint(2, 9), rng.randint(2, high - 1), rng.randint(1, 19)
        return factor, x, offset, rng.randint(2, 6), rng.randint(1, 19)

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        factor, x, offset, slope, shift = params
        right = factor * x + offset
        question = f"If {factor}*x+{offset}={right}, what is {slope}*x+{shift}?"
        reasoning = (
            f"<expert>algebraist:x=(c-b)/a<step>{right}-{offset}={factor * x}"
            f"<step>{factor * x}/{factor}={x}<step>{slope}*{x}={slope * x}"
            f"<step>{slope * x}+{shift}={slope * x + shift}"
        )
        return question, reasoning, str(slope * x + shift)

    def solve(self, question: str) -> str:
        match = read(r"If (\d+)\*x\+(\d+)=(\d+), what is (\d+)\*x\+(\d+)\?", question)
        factor, offset, right, slope, shift = map(int, match.groups())
        return str(Fraction(right - offset, factor) * slope + shift)

    def check_form(self, question: str, reasoning: str) -> None:
        check_rule(reasoning, "algebraist", "x=(c-b)/a")


class UnitTotal(Task):
    """Units: whole packs and single pieces of two deliveries, in pieces."""

    name = "unit_total"
    strategy = "expert_perspective"

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        pack = rng.choice(tuple(PACKS))
        size = PACKS[pack][1]
        high = 3 + difficulty
        return pack, *((rng.randint(2, high), rng.randint(1, size - 1)) for _ in range(2))

    def canonical(self, params: Params) -> Params:
        pack, *parts = params
        return pack, tuple(sorted(parts))

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        pack, (first, rest), (second, more) = params
        piece, size = PACKS[pack]
        question = (
            f"How many {piece} are {first} {pack} and {rest} {piece} "
            f"plus {second} {pack} and {more} {piece}? A full unit is {size}."
        )
        one, two = first * size + rest, second * size + more
        reasoning = (
            f"<expert>converter:n*p+r<step>{first}*{size}={first * size}"
            f"<step>{first * size}+{rest}={one}<step>{second}*{size}={second * size}"
            f"<step>{second * size}+{more}={two}<step>{one}+{two}={one + two}"
        )
        return question, reasoning, str(one + two)

    def solve(self, question: str) -> str:
        pattern = r"are (\d+) \w+ and (\d+) \w+ plus (\d+) \w+ and (\d+) \w+\? A full unit is (\d+)"
        first, rest, second, more, size = map(int, read(pattern, question).groups())
        return str((first + second) * size + rest + more)

    def check_form(self, question: str, reasoning: str) -> None:
        check_rule(reasoning, "converter", "n*p+r")


TASKS: tuple[Task, ...] = (SpeedChange(), LinearEquation(), UnitTotal())
