"""self_doubt: a draft with a real slip, the doubt that finds it, and the correction.

The slip is the one people make (working left to right, forgetting the end post), so it follows
from the question and a model can learn to make it, doubt it and fix it in a greedy generation.
"""

from __future__ import annotations

import random

from distforge.data.tasks.base import EQUATION, Params, Task, read, require


def check_correction(reasoning: str, doubt: str) -> None:
    """One doubt between a draft and a correction whose result differs from the draft's."""
    parts = reasoning.split(f"<doubt>{doubt}")
    require(len(parts) == 2, f"expected one doubt {doubt!r}")
    draft, correction = (EQUATION.findall(part) for part in parts)
    require(bool(draft) and bool(correction), "the draft or the correction has no equation")
    require(draft[-1][-1] != correction[-1][-1], "the draft has no slip: it gives the answer")


class Precedence(Task):
    """a+b*c-d: the draft works from left to right; the doubt puts the product first."""

    name = "precedence"
    strategy = "self_doubt"

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        while True:
            a, b, c = rng.randint(1, 9), rng.randint(2, 4 + difficulty), rng.randint(2, 6)
            d = rng.randint(1, 9 + 3 * difficulty)
            if a + b * c >= d and (a + b) * c <= 99:
                return a, b, c, d

    def canonical(self, params: Params) -> Params:
        a, b, c, d = params
        return a, *sorted((b, c)), d

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        a, b, c, d = params
        draft = (a + b) * c
        result = a + b * c - d
        reasoning = (
            f"<step>{a}+{b}={a + b}<step>{a + b}*{c}={draft}<doubt>times first"
            f"<step>{b}*{c}={b * c}<step>{a}+{b * c}={a + b * c}<step>{a + b * c}-{d}={result}"
        )
        return f"What is {a}+{b}*{c}-{d}?", reasoning, str(result)

    def solve(self, question: str) -> str:
        a, b, c, d = map(int, read(r"(\d+)\+(\d+)\*(\d+)-(\d+)\?", question).groups())
        return str(a - d + sum([b] * c))

    def check_form(self, question: str, reasoning: str) -> None:
        check_correction(reasoning, "times first")


class FencePosts(Task):
    """A fence: the draft counts gaps, the doubt remembers the post at the end."""

    name = "fence_posts"
    strategy = "self_doubt"

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        gap, gaps = rng.randint(2, 9), rng.randint(2, 5 + difficulty)
        return gap, gaps, rng.randint(2, 9), rng.randint(2, 19)

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        gap, gaps, price, gate = params
        length, posts = gap * gaps, gaps + 1
        question = (
            f"A fence of {length} m has a post every {gap} m, at both ends too. "
            f"A post costs {price}, the gate {gate}. What is the cost?"
        )
        total = posts * price
        reasoning = (
            f"<step>{length}/{gap}={gaps}<step>{gaps}*{price}={gaps * price}<doubt>end post"
            f"<step>{gaps}+1={posts}<step>{posts}*{price}={total}"
            f"<step>{total}+{gate}={total + gate}"
        )
        return question, reasoning, str(total + gate)

    def solve(self, question: str) -> str:
        pattern = r"fence of (\d+) m has a post every (\d+) m.*costs (\d+), the gate (\d+)"
        length, gap, price, gate = map(int, read(pattern, question).groups())
        return str(len(range(0, length + 1, gap)) * price + gate)

    def check_form(self, question: str, reasoning: str) -> None:
        check_correction(reasoning, "end post")


TASKS: tuple[Task, ...] = (Precedence(), FencePosts())
