"""mece_decomposition: cells that are disjoint and together cover the whole set."""

from __future__ import annotations

import random
import re

from distforge.data.tasks.base import LONGEST, Params, Task, draw_three, read, require

CELLS = "ABC"


def totals(counts: list[int], values: list[int]) -> tuple[list[str], int]:
    """The steps from cell counts and the value of one item of each cell to the grand total."""
    products = [count * value for count, value in zip(counts, values, strict=True)]
    steps = [f"<step>{c}*{v}={p}" for c, v, p in zip(counts, values, products, strict=True)]
    total = products[0]
    for product in products[1:]:
        steps.append(f"<step>{total}+{product}={total + product}")
        total += product
    return steps, total


def check_cover(counts: list[int], size: int) -> None:
    require(sum(counts) == size, f"the cells hold {counts}, together not the {size} items")


class LetterPoints(Task):
    """Points for a row of letters: count each letter once, show that the counts cover the row."""

    name = "letter_points"
    strategy = "mece_decomposition"

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        values = draw_three(rng, difficulty)
        row = "".join(rng.choice(CELLS) for _ in range(4 + min(difficulty, LONGEST)))
        return values, row

    def canonical(self, params: Params) -> Params:
        values, row = params
        return tuple(sorted((value, row.count(c)) for c, value in zip(CELLS, values, strict=True)))

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        values, row = params
        prices = ", ".join(f"{cell}={value}" for cell, value in zip(CELLS, values, strict=True))
        question = f"Points: {prices}. Row: {row}. What is the total?"
        counts = [row.count(cell) for cell in CELLS]
        cells = [
            f"<mece>{cell}:{cell * count}={count}"
            for cell, count in zip(CELLS, counts, strict=True)
        ]
        steps, total = totals(counts, list(values))
        return question, "".join(cells + steps), str(total)

    def solve(self, question: str) -> str:
        prices = {cell: int(value) for cell, value in re.findall(r"([A-C])=(\d+)", question)}
        row = read(r"Row: ([A-C]+)\.", question)[1]
        return str(sum(prices[letter] for letter in row))

    def check_form(self, question: str, reasoning: str) -> None:
        row = read(r"Row: ([A-C]+)\.", question)[1]
        told = re.findall(r"<mece>([A-C]):([A-C]*)=(\d)", reasoning)
        require([cell for cell, _, _ in told] == list(CELLS), f"expected the cells {CELLS}")
        for cell, members, count in told:
            require(members == cell * row.count(cell), f"cell {cell} lists {members!r}")
            require(len(members) == int(count), f"cell {cell} holds {len(members)}, not {count}")
        check_cover([int(count) for _, _, count in told], len(row))


class AgeTickets(Task):
    """Entrance fees by age group: put every visitor into exactly one group, then price groups."""

    name = "age_tickets"
    strategy = "mece_decomposition"
    bounds = (20, 60)

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        values = draw_three(rng, difficulty)
        ages = tuple(rng.randint(10, 89) for _ in range(2 + min(difficulty, LONGEST)))
        return values, ages

    def canonical(self, params: Params) -> Params:
        values, ages = params
        return values, tuple(sorted(ages))

    def _cell(self, age: int) -> str:
        return CELLS[sum(age >= bound for bound in self.bounds)]

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        values, ages = params
        low, high = self.bounds
        question = (
            f"Tickets: A under {low} {values[0]}, B under {high} {values[1]}, C older {values[2]}. "
            f"Ages:{','.join(map(str, ages))}. What is the total?"
        )
        labels = "".join(self._cell(age) for age in ages)
        listed = ",".join(f"{age}{label}" for age, label in zip(ages, labels, strict=True))
        counts = [labels.count(cell) for cell in CELLS]
        cells = ",".join(f"{cell}{count}" for cell, count in zip(CELLS, counts, strict=True))
        steps, total = totals(counts, list(values))
        return question, f"<mece>{listed}<mece>{cells}{''.join(steps)}", str(total)

    def solve(self, question: str) -> str:
        match = read(r"under (\d+) (\d+), B under (\d+) (\d+), C older (\d+)\. Ages:", question)
        low, first, high, second, third = map(int, match.groups())
        ages = [int(age) for age in read(r"Ages:([\d,]+)\.", question)[1].split(",")]
        return str(sum(first if a < low else second if a < high else third for a in ages))

    def check_form(self, question: str, reasoning: str) -> None:
        ages = read(r"Ages:([\d,]+)\.", question)[1].split(",")
        match = read(r"<mece>([\dA-C,]+)<mece>A(\d),B(\d),C(\d)<step>", reasoning)
        told = [(item[:-1], item[-1]) for item in match[1].split(",")]
        require([age for age, _ in told] == ages, f"the cells hold {told}, the ages are {ages}")
        for age, label in told:
            require(label == self._cell(int(age)), f"age {age} is not in cell {label}")
        counts = [int(match[i]) for i in (2, 3, 4)]
        held = [sum(label == cell for _, label in told) for cell in CELLS]
        require(counts == held, f"the counts are {held}, not {counts}")
        check_cover(counts, len(ages))


TASKS: tuple[Task, ...] = (LetterPoints(), AgeTickets())
