"""Whether answers follow a prompt: three ways to tell, each of which can say no.

The seven strategies ask for a layout. Of any other prompt the champion itself knows most: an answer
follows the prompt as far as the champion finds it likelier with the prompt in front than without,
and not out of the question with it. Where the lines are drawn is learned from the champion's own
answers on both sides. A user may bring a check instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.baking.prompt.trajectories import PromptedQuestion, encode_contexts
from distforge.evaluation.adherence import Layout, layout
from distforge.evaluation.checker import Checker
from distforge.evaluation.likelihood import log_likelihoods
from distforge.rendering import Renderer
from distforge.training.distributed import World

TOLD_APART = 0.75
"""Balanced accuracy on the champion's own answers below which nothing is said of other answers."""
# Nats a token: what a sampled answer may be below the likeliest one.
_SLACK = 1.0


class Criterion(Protocol):
    """Tells which answers follow a prompt; made for certain questions, in order."""

    @property
    def how(self) -> str:
        """How it tells, in a few words for a reader of the report."""

    def follows(self, answers: Sequence[str]) -> list[bool] | None:
        """Of the answer to each question; None where it cannot tell. Collective."""


class LayoutCriterion:
    """An answer follows where it is laid out as ``wanted``, see `evaluation.adherence`."""

    how = "by its layout, which must be that of the verified trace"

    def __init__(self, wanted: Sequence[Layout]) -> None:
        self.wanted = wanted

    def follows(self, answers: Sequence[str]) -> list[bool]:
        """See `Criterion`."""
        return [layout(a) == form for a, form in zip(answers, self.wanted, strict=True)]


class CheckerCriterion:
    """An answer follows where a user's check says so."""

    how = "by the given check"

    def __init__(self, check: Checker, questions: Sequence[str]) -> None:
        self._check, self._questions = check, questions

    def follows(self, answers: Sequence[str]) -> list[bool]:
        """See `Criterion`."""
        return [self._check(q, a) for q, a in zip(self._questions, answers, strict=True)]


class LikelihoodCriterion:
    """An answer follows where log p(answer | prompt, question) − log p(answer | question) of the
    champion lies above a border, and log p(answer | prompt, question) a token is not more than
    one nat below the least likely of the champion's own prompted answers: a model that writes
    nonsense follows nobody. Collective.

    The borders of a question come from the champion's own answers, with and without the prompt, to
    the *other* half of the questions: so its own answers are judged as everybody else's. The first
    divides them best.

    Args:
        champion, tokenizer: who judges.
        prompt: that is to be followed. questions: that were asked.
        unprompted, prompted: what the champion answers.
        batch_size: answers at once.
        world: this process; ranks share the work.

    Attributes:
        told_apart: balanced accuracy, in [0, 1], at which the champion's own answers are told
            apart; 0.5 is chance.
    """

    def __init__(
        self,
        champion: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: str,
        questions: Sequence[str],
        unprompted: Sequence[str],
        prompted: Sequence[str],
        batch_size: int,
        world: World,
    ) -> None:
        self._champion, self._renderer = champion, Renderer(tokenizer)
        self._batch_size, self._world = batch_size, world
        self._contexts = encode_contexts(
            tokenizer, [PromptedQuestion(prompt, q) for q in questions]
        )
        self._known: dict[tuple[int, str], tuple[float, float]] = {}
        (low, _), (high, likely) = self._read(unprompted), self._read(prompted)
        half = np.arange(len(questions)) % 2
        self._borders, self._floors = np.full((2, len(questions)), np.nan)
        for mine in (0, 1):
            other = half != mine
            if other.any():
                self._borders[half == mine] = best_border(low[other], high[other])
                self._floors[half == mine] = likely[other].min() - _SLACK
        self.told_apart = 0.5
        if len(questions) > 1:
            right = fmean(self._judge(prompted)), 1 - fmean(self._judge(unprompted))
            self.told_apart = fmean(right)

    @property
    def how(self) -> str:
        """See `Criterion`."""
        said = (
            "by likelihood; it classifies the champion's own answers, with and without the prompt, "
            f"{self.told_apart:.1%} correctly"
        )
        if self.told_apart >= TOLD_APART:
            return said
        return (
            f"{said}, too few to rely on: the prompt changes little, or the questions are few; set "
            "check to a function of your own, or use more questions"
        )

    def follows(self, answers: Sequence[str]) -> list[bool] | None:
        """See `Criterion`."""
        if self.told_apart < TOLD_APART:
            return None
        return [bool(one) for one in self._judge(answers)]

    def _judge(self, answers: Sequence[str]) -> np.ndarray:
        ratios, likely = self._read(answers)
        return (ratios > self._borders) & (likely >= self._floors)

    def _read(self, answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Of each answer: how much likelier the prompt makes it, in nats, and its log-probability
        a token with the prompt. What was read before is remembered."""
        keys = list(enumerate(answers))
        new = [key for key in keys if key not in self._known]
        shares = self._world.gather_objects(
            self._log_probs(new[self._world.rank :: self._world.size])
        )
        for rank, share in enumerate(shares):
            self._known.update(zip(new[rank :: self._world.size], share, strict=True))
        ratios, likely = zip(*(self._known[key] for key in keys), strict=True)
        return np.array(ratios), np.array(likely)

    def _log_probs(self, keys: Sequence[tuple[int, str]]) -> list[tuple[float, float]]:
        answers = self._renderer.following([answer for _, answer in keys])
        sides = []
        for side in (0, 1):
            contexts = [self._contexts[index][side] for index, _ in keys]
            rows = [[*c, *answer] for c, answer in zip(contexts, answers, strict=True)]
            known = [len(context) for context in contexts]
            sides.append(log_likelihoods(self._champion, rows, known, self._batch_size))
        return [
            (prompted - plain, prompted / max(1, len(answer)))
            for prompted, plain, answer in zip(*sides, answers, strict=True)
        ]


def best_border(low: np.ndarray, high: np.ndarray) -> float:
    """The number that best has ``low`` at or under it and ``high`` above it, both weighing alike.

    It lies in the middle between two values; of several equally good ones it is the middle one.
    """
    values = np.unique(np.concatenate([low, high]))
    middles = (values[:-1] + values[1:]) / 2
    candidates = np.concatenate([[values[0] - 1], middles, [values[-1]]])
    right = np.array([fmean(low <= c) + fmean(high > c) for c in candidates])
    best = candidates[right == right.max()]
    return float(best[len(best) // 2])
