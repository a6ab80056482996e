"""chain_of_thought: one state after another, each written down."""

from __future__ import annotations

import random
import re

from distforge.data.tasks.base import Params, Task, numbers, read, require

CUPS = "ABCDE"
NAMES = ("Ann", "Tom", "Mia", "Leo", "Eva", "Max")
THINGS = ("coins", "cards", "shells", "stamps")


class SwapTracking(Task):
    """Follow a ball under five cups through swaps: a permutation composed one swap at a time."""

    name = "swap_tracking"
    strategy = "chain_of_thought"

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        pairs = [(a, b) for a in CUPS for b in CUPS if a < b]
        swaps = tuple("".join(rng.sample(rng.choice(pairs), 2)) for _ in range(4 + difficulty))
        return rng.choice(CUPS), swaps

    def canonical(self, params: Params) -> Params:
        start, swaps = params
        return start, tuple("".join(sorted(swap)) for swap in swaps)

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        cup, swaps = params
        question = f"The ball is under cup {cup}. Swaps:{','.join(swaps)}. Where is it?"
        steps = []
        for first, second in swaps:
            cup = {first: second, second: first}.get(cup, cup)
            steps.append(f"<step>{first}{second}:{cup}")
        return question, "".join(steps), cup

    def solve(self, question: str) -> str:
        match = read(r"under cup ([A-E])\. Swaps:([A-E,]+)\.", question)
        content = {cup: cup == match[1] for cup in CUPS}
        for swap in match[2].split(","):
            content[swap[0]], content[swap[1]] = content[swap[1]], content[swap[0]]
        return next(cup for cup, ball in content.items() if ball)

    def check_form(self, question: str, reasoning: str) -> None:
        asked = read(r"Swaps:([A-E,]+)\.", question)[1].split(",")
        told = re.findall(r"<step>([A-E]{2}):[A-E]", reasoning)
        require(told == asked, f"the trace follows the swaps {told}, the question asks {asked}")


class RunningTotal(Task):
    """A word problem: a stock that grows and shrinks, its size written after every event."""

    name = "running_total"
    strategy = "chain_of_thought"

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        total = start = rng.randint(10, 60)
        changes: list[int] = []
        while len(changes) < 3 + difficulty:
            change = rng.choice((-1, 1)) * rng.randint(2, 9)
            if 0 <= total + change <= 99:
                total += change
                changes.append(change)
        return start, tuple(changes)

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        total, changes = params
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        events = ", ".join(f"{'gains' if c > 0 else 'loses'} {abs(c)}" for c in changes)
        question = f"{name} has {total} {thing}, then {events}. How many {thing} are left?"
        steps = []
        for change in changes:
            steps.append(f"<step>{total}{'+' if change > 0 else '-'}{abs(change)}={total + change}")
            total += change
        return question, "".join(steps), str(total)

    def solve(self, question: str) -> str:
        start = int(read(r"has (\d+) ", question)[1])
        gains = sum(int(n) for n in re.findall(r"gains (\d+)", question))
        losses = sum(int(n) for n in re.findall(r"loses (\d+)", question))
        return str(start + gains - losses)

    def check_form(self, question: str, reasoning: str) -> None:
        events = len(numbers(question)) - 1
        require(reasoning.count("<step>") == events, f"expected one step for each of {events}")


TASKS: tuple[Task, ...] = (SwapTracking(), RunningTotal())
