"""chain_of_thought: one state after another, each written down."""

from __future__ import annotations

import random
import re

from distforge.data.tasks.base import LONGEST, Params, Task, read, require

CUPS = "12345"
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
NAMES = ("Ann", "Tom", "Mia", "Leo", "Eva", "Max")
THINGS = ("coins", "cards", "shells", "stamps")


class SwapTracking(Task):
    """Follow a ball under five cups through swaps: a permutation composed one swap at a time.

    Each step repeats where the ball is before it says where it goes. Cups are digits because every
    other task teaches a model to copy digits; cups that were letters, and a trace that only told
    the new place, were not learned in the time that the other tasks need.
    """

    name = "swap_tracking"
    strategy = "chain_of_thought"
    share = 2

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        start = cup = rng.choice(CUPS)
        swaps = []
        for _ in range(3 + min(difficulty, LONGEST)):
            # Were pairs uniform, the ball would rest in most swaps, and "it stays" a fair guess.
            moves = rng.random() < 0.6
            first = cup if moves else rng.choice([c for c in CUPS if c != cup])
            second = rng.choice([c for c in CUPS if c not in (cup, first)])
            swaps.append("&".join(sorted((first, second))))
            cup = second if moves else cup
        return start, tuple(swaps)

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        cup, swaps = params
        listed = ",".join(f"{day} {swap}" for day, swap in zip(DAYS, swaps, strict=False))
        question = f"The ball starts under cup {cup}. Swaps:{listed}. Where is it?"
        steps = [f"<step>{cup}"]
        for day, swap in zip(DAYS, swaps, strict=False):
            first, second = swap.split("&")
            after = {first: second, second: first}.get(cup, cup)
            steps.append(f"<step>{day} {cup},{swap}:{after}")
            cup = after
        return question, "".join(steps), cup

    def solve(self, question: str) -> str:
        match = read(r"under cup ([1-5])\. Swaps:([^.]+)\.", question)
        content = {cup: cup == match[1] for cup in CUPS}
        for swap in match[2].split(","):
            first, second = swap[-3], swap[-1]
            content[first], content[second] = content[second], content[first]
        return next(cup for cup, ball in content.items() if ball)

    def check_form(self, question: str, reasoning: str) -> None:
        start, swaps = read(r"under cup ([1-5])\. Swaps:([^.]+)\.", question).groups()
        asked = swaps.split(",")
        told = re.findall(r"<step>(\w+) ([1-5]),([1-5]&[1-5]):([1-5])", reasoning)
        pairs = [f"{day} {pair}" for day, _, pair, _ in told]
        require(pairs == asked, f"expected the swaps {asked}, found {pairs}")
        require(reasoning.startswith(f"<step>{start}<step>"), f"expected to begin at {start}")
        place = start
        for count, (_, before, _, after) in enumerate(told, 1):
            require(before == place, f"swap {count} begins under {before}, not under {place}")
            shorter = question.replace(swaps, ",".join(asked[:count]))
            require(self.solve(shorter) == after, f"after {count} swaps it is not under {after}")
            place = after


class RunningTotal(Task):
    """A word problem: a stock that grows and shrinks, its size written after every event."""

    name = "running_total"
    strategy = "chain_of_thought"

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        total = start = rng.randint(10, 60)
        changes: list[int] = []
        most = 9 if difficulty <= LONGEST else 11
        while len(changes) < 2 + min(difficulty, LONGEST):
            change = rng.choice((-1, 1)) * rng.randint(2, most)
            if 0 <= total + change <= 99:
                total += change
                changes.append(change)
        return start, tuple(changes)

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        total, changes = params
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        events = ",".join(
            f"{day} {'gains' if change > 0 else 'loses'} {abs(change)}"
            for day, change in zip(DAYS, changes, strict=False)
        )
        question = f"{name} has {total} {thing}. Events:{events}. How many {thing} are left?"
        steps = []
        for day, change in zip(DAYS, changes, strict=False):
            sign = "+" if change > 0 else "-"
            steps.append(f"<step>{day} {total}{sign}{abs(change)}={total + change}")
            total += change
        return question, "".join(steps), str(total)

    def solve(self, question: str) -> str:
        start = int(read(r"has (\d+) ", question)[1])
        gains = sum(int(n) for n in re.findall(r"gains (\d+)", question))
        losses = sum(int(n) for n in re.findall(r"loses (\d+)", question))
        return str(start + gains - losses)

    def check_form(self, question: str, reasoning: str) -> None:
        days = re.findall(r"(\w+) (?:gains|loses)", question)
        told = re.findall(r"<step>(\w+) \d", reasoning)
        require(told == days, f"the trace tells of {told}, the question of {days}")


TASKS: tuple[Task, ...] = (SwapTracking(), RunningTotal())
