"""orthogonal_wisdom: two independent methods, and the answer only where they agree."""

from __future__ import annotations

import random
import re

from distforge.data.tasks.base import LONGEST, Params, Task, numbers, read, require


def check_agreement(reasoning: str) -> None:
    """Two ``<reason>`` parts whose last equations have the same result, then the agreement."""
    ways = reasoning.split("<reason>")[1:]
    require(len(ways) == 2, f"expected two ways, found {len(ways)}")
    agreement = re.search(r"<step>(\d+)=(\d+) agree$", ways[1])
    require(agreement is not None, "the trace does not end with the agreement of both ways")
    assert agreement is not None
    results = [numbers(part)[-1] for part in (ways[0], ways[1][: agreement.start()])]
    told = [int(agreement[1]), int(agreement[2])]
    require(told == results and told[0] == told[1], f"the ways give {results}, the trace {told}")


class CornerArea(Task):
    """Area of a rectangle with a corner cut away: subtract the corner, or add two strips."""

    name = "corner_area"
    strategy = "orthogonal_wisdom"

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        high = 9 + difficulty
        width, height = rng.randint(4, high), rng.randint(4, high)
        return width, height, rng.randint(2, width - 2), rng.randint(2, height - 2)

    def canonical(self, params: Params) -> Params:
        width, height, cut_width, cut_height = params
        return tuple(sorted(((width, cut_width), (height, cut_height))))

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        width, height, cut_width, cut_height = params
        question = (
            f"A {width} by {height} sheet loses a {cut_width} by {cut_height} corner. "
            "What area is left?"
        )
        whole, corner = width * height, cut_width * cut_height
        top, side = height - cut_height, width - cut_width
        area = whole - corner
        reasoning = (
            f"<reason>{width}*{height}={whole},{cut_width}*{cut_height}={corner},"
            f"{whole}-{corner}={area}"
            f"<reason>{height}-{cut_height}={top},{width}*{top}={width * top},"
            f"{width}-{cut_width}={side},{side}*{cut_height}={side * cut_height},"
            f"{width * top}+{side * cut_height}={area}<step>{area}={area} agree"
        )
        return question, reasoning, str(area)

    def solve(self, question: str) -> str:
        match = read(r"A (\d+) by (\d+) sheet loses a (\d+) by (\d+) corner", question)
        width, height, cut_width, cut_height = map(int, match.groups())
        return str(
            sum(x >= cut_width or y >= cut_height for x in range(width) for y in range(height))
        )

    def check_form(self, question: str, reasoning: str) -> None:
        check_agreement(reasoning)


class TwoOrders(Task):
    """A sum taken forwards and backwards: the same total along two different paths."""

    name = "two_orders"
    strategy = "orthogonal_wisdom"

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        most = 19 if difficulty <= LONGEST else 22
        return tuple(rng.randint(2, most) for _ in range(3 + (difficulty > 1)))

    def canonical(self, params: Params) -> Params:
        return tuple(sorted(params))

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        ways = []
        for order in (params, params[::-1]):
            total, sums = order[0], []
            for term in order[1:]:
                sums.append(f"{total}+{term}={total + term}")
                total += term
            ways.append(f"<reason>{','.join(sums)}")
        total = sum(params)
        reasoning = f"{''.join(ways)}<step>{total}={total} agree"
        return (
            f"Parcels weigh {','.join(map(str, params))}. What is the sum?",
            reasoning,
            str(total),
        )

    def solve(self, question: str) -> str:
        return str(sum(int(n) for n in read(r"weigh ([\d,]+)\.", question)[1].split(",")))

    def check_form(self, question: str, reasoning: str) -> None:
        check_agreement(reasoning)


TASKS: tuple[Task, ...] = (CornerArea(), TwoOrders())
