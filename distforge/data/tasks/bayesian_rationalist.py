"""bayesian_rationalist: weight = prior times likelihood; posterior = weight over all weights.

Answers are fractions of whole weights. Any equal fraction is right, so nothing hangs on reducing.
"""

from __future__ import annotations

import random
import re
from fractions import Fraction

from distforge.data.tasks.base import Params, Task, read, require


def check_posterior(reasoning: str, hypotheses: int) -> None:
    """One weight a hypothesis, and a last sum that holds all of them."""
    weights = dict(re.findall(r"<reason>([A-Z]):[^<]*=(\d+)(?=<)", reasoning))
    require(len(weights) == hypotheses, f"expected {hypotheses} weights, found {weights}")
    listed = ",".join(f"{name}={weight}" for name, weight in weights.items())
    require(f"<step>{listed}<step>" in reasoning, f"expected the list {listed}")
    end = re.search(r"<step>([A-Z])=(\d+) of (\d+)$", reasoning)
    total = str(sum(map(int, weights.values())))
    require(
        end is not None and weights[end[1]] == end[2] and end[3] == total,
        f"the trace does not end with one of {listed} of {total}",
    )


class TwoBags(Task):
    """Two bags of equal size, a prior, one red and one blue draw with replacement."""

    name = "two_bags"
    strategy = "bayesian_rationalist"
    sizes = (5, 6, 7)

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        high = 2 + difficulty
        size = rng.choice(self.sizes)
        first, second = rng.sample(range(1, size), 2)
        return size, rng.randint(1, high), rng.randint(1, high), first, second, rng.choice("PQ")

    def canonical(self, params: Params) -> Params:
        size, prior_p, prior_q, red_p, red_q, asked = params
        bags = ((prior_p, red_p, asked == "P"), (prior_q, red_q, asked == "Q"))
        return size, *sorted(bags)

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        size, prior_p, prior_q, red_p, red_q, asked = params
        question = (
            f"Bags of {size} balls: P has {red_p} red, Q has {red_q} red, prior P:Q is "
            f"{prior_p}:{prior_q}. Drawn with return: red, then blue. How likely is {asked}?"
        )
        weights, lines = {}, []
        for bag, prior, red in (("P", prior_p, red_p), ("Q", prior_q, red_q)):
            blue, partial = size - red, prior * red
            weights[bag] = partial * blue
            lines.append(
                f"<reason>{bag}:{size}-{red}={blue},{prior}*{red}={partial},"
                f"{partial}*{blue}={weights[bag]}"
            )
        total = sum(weights.values())
        lines.append(f"<step>P={weights['P']},Q={weights['Q']}")
        lines.append(f"<step>{weights['P']}+{weights['Q']}={total}")
        lines.append(f"<step>{asked}={weights[asked]} of {total}")
        return question, "".join(lines), f"{weights[asked]}/{total}"

    def solve(self, question: str) -> str:
        match = read(
            r"of (\d+) balls: P has (\d+) red, Q has (\d+) red, prior P:Q is (\d+):(\d+)\..*"
            r"How likely is ([PQ])\?",
            question,
        )
        size, red_p, red_q, prior_p, prior_q = map(int, match.groups()[:5])
        joint = {}
        for bag, prior, red in (("P", prior_p, red_p), ("Q", prior_q, red_q)):
            chance = Fraction(red, size)
            joint[bag] = Fraction(prior, prior_p + prior_q) * chance * (1 - chance)
        return str(joint[match[6]] / sum(joint.values()))

    def check_form(self, question: str, reasoning: str) -> None:
        check_posterior(reasoning, 2)


class ThreeMachines(Task):
    """Three machines with shares and defect rates in tenths: which one made the defect?"""

    name = "three_machines"
    strategy = "bayesian_rationalist"

    def draw(self, rng: random.Random, difficulty: int) -> Params:
        high = 2 + difficulty
        pairs = tuple((rng.randint(1, high), rng.randint(1, 6)) for _ in range(3))
        return *pairs, rng.choice("ABC")

    def canonical(self, params: Params) -> Params:
        *pairs, asked = params
        return tuple(
            sorted((*pair, name == asked) for pair, name in zip(pairs, "ABC", strict=True))
        )

    def render(self, params: Params, rng: random.Random) -> tuple[str, str, str]:
        *pairs, asked = params
        told = ", ".join(
            f"{name} {share} with {rate}" for name, (share, rate) in zip("ABC", pairs, strict=True)
        )
        question = (
            f"Machines make parts by share with defects in ten: {told}. "
            f"A part is defect. How likely is {asked}?"
        )
        weights = {name: s * r for name, (s, r) in zip("ABC", pairs, strict=True)}
        lines = [
            f"<reason>{name}:{share}*{rate}={weights[name]}"
            for name, (share, rate) in zip("ABC", pairs, strict=True)
        ]
        both, total = weights["A"] + weights["B"], sum(weights.values())
        lines.append(f"<step>{','.join(f'{name}={weight}' for name, weight in weights.items())}")
        lines.append(f"<step>{weights['A']}+{weights['B']}={both}")
        lines.append(f"<step>{both}+{weights['C']}={total}")
        lines.append(f"<step>{asked}={weights[asked]} of {total}")
        return question, "".join(lines), f"{weights[asked]}/{total}"

    def solve(self, question: str) -> str:
        asked = read(r"How likely is ([A-C])\?", question)[1]
        told = re.findall(r"([A-C]) (\d+) with (\d+)", question)
        shares = sum(int(share) for _, share, _ in told)
        joint = {n: Fraction(int(s), shares) * Fraction(int(r), 10) for n, s, r in told}
        return str(joint[asked] / sum(joint.values()))

    def check_form(self, question: str, reasoning: str) -> None:
        check_posterior(reasoning, 3)


TASKS: tuple[Task, ...] = (TwoBags(), ThreeMachines())
