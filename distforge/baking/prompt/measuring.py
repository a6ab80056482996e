"""Measuring baked models against their champion: KL, answers, layouts, what was forgotten."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.baking.prompt.baked import BakedPrompt
from distforge.baking.prompt.distillation import DistillationLoss, logits_are_linear
from distforge.baking.prompt.following import (
    CheckerCriterion,
    Criterion,
    LayoutCriterion,
    LikelihoodCriterion,
)
from distforge.baking.prompt.grading import Grades, grade
from distforge.baking.prompt.heldout import mean_kl
from distforge.baking.prompt.prompt_config import PromptBakingConfig
from distforge.baking.prompt.questions import QuestionSource
from distforge.baking.prompt.trajectories import (
    PromptedQuestion,
    Trajectory,
    teacher_trajectories,
)
from distforge.data import STRATEGIES, STRATEGY_PROMPTS, Example
from distforge.errors import InputError
from distforge.evaluation.adherence import strategy_layout
from distforge.evaluation.checker import Checker
from distforge.evaluation.scoring import fraction, judge, write_answers
from distforge.rendering import Asked
from distforge.rendering.stops import padding_id
from distforge.reports.prompt_summary import AnswerMark, AnswerRow, BakeReport, Condition
from distforge.telemetry.console import counting
from distforge.training.distributed import World

# Questions asked at each strength that grading measures, the largest difference in adherence
# between two of them that is left, and how many it measures at most.
_GRADED, _GRADES_APART, _MOST_GRADES = 140, 0.04, 24


@dataclass(frozen=True)
class Quiz:
    """Questions about one prompt, with their examples where the right answers are known."""

    questions: Sequence[str]
    examples: Sequence[Example] | None
    criterion: Criterion

    def score(self, answers: Sequence[str]) -> tuple[Condition, list[AnswerMark]]:
        """What the answers are worth, together and each; collective."""
        follows = self.criterion.follows(answers)
        correct = None
        if self.examples is not None:
            pairs = zip(self.examples, answers, strict=True)
            correct = [judge(example, answer).correct for example, answer in pairs]
        marks = [
            AnswerMark(
                text=answer,
                follows=follows[i] if follows is not None else None,
                correct=correct[i] if correct is not None else None,
            )
            for i, answer in enumerate(answers)
        ]
        return Condition(fraction(correct or ()), fraction(follows or ()), len(answers)), marks


@dataclass(frozen=True)
class Probe(Quiz):
    """Held-out questions about one prompt, and the prompted champion's trajectories."""

    trajectories: Sequence[Trajectory]


class Measurer:
    """Asks and compares models; every method is collective over the world's ranks.

    Args:
        champion: the model that others are compared with.
        tokenizer: of all of them.
        questions: where questions come from.
        config: how long and in what portions answers are written, and their seed.
        world: this process.
        check: a user's own, which says whether an answer follows the prompt.
        say: is told how far it is.
    """

    def __init__(
        self,
        champion: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: QuestionSource,
        config: PromptBakingConfig,
        world: World,
        check: Checker | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._champion = champion
        self._tokenizer = tokenizer
        self._questions = questions
        self._config = config
        self._world = world
        self._check, self._say = check, say
        self._champions: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        self._responses: dict[tuple[PromptedQuestion, ...], list[Trajectory]] = {}

    def probe(self, prompt: str, strategy: str, count: int) -> Probe:
        """``count`` held-out questions about a prompt (0: all)."""
        source = self._questions
        asked = source.sets(self._champion, {prompt: strategy}).heldout
        examples = None
        questions = [question.question for question in asked][: count or None]
        if strategy or source.has_examples:
            examples = source.heldout(strategy, count)
            questions = [example.question for example in examples]
        criterion = self._criterion(questions, examples, prompt, strategy)
        return Probe(questions, examples, criterion, self.responses(self._champion, asked))

    def responses(
        self, model: PreTrainedModel, questions: Sequence[PromptedQuestion]
    ) -> list[Trajectory]:
        """What the prompted ``model`` answers; the champion's is written once."""
        key = tuple(questions)
        if model is self._champion and key in self._responses:
            return self._responses[key]
        self._say(f"the prompted model answers {len(questions):,} questions")
        progress = counting(self._say, "questions answered")
        written = teacher_trajectories(
            model, self._tokenizer, questions, self._config, self._world, progress
        )
        if model is self._champion:
            self._responses[key] = written
        return written

    def condition(self, model: PreTrainedModel, quiz: Quiz, prompt: str = "") -> Condition:
        """Accuracy and adherence of a model on a probe's questions."""
        return quiz.score(self.write(model, quiz.questions, prompt))[0]

    def kl(
        self, model: PreTrainedModel, trajectories: Sequence[Trajectory], prompted: bool = False
    ) -> float:
        """KL(prompted champion ‖ model), nats a token; the model is ``prompted`` as well or not."""
        if prompted:
            trajectories = [dataclasses.replace(t, plain=t.prompted) for t in trajectories]
        loss = DistillationLoss(self._champion.eval(), states=logits_are_linear(model))
        return mean_kl(model, loss, trajectories, self._world, padding_id(self._tokenizer))

    def grade(self, baked: BakedPrompt) -> Grades:
        """How many answers follow the baked prompts at which strength.

        Asked are questions of the training split, so that held-out ones can judge what comes of it.
        """
        asked = []
        for prompt, strategy in baked.prompts.items():
            examples, questions = self._spare(prompt, strategy, -(-_GRADED // len(baked.prompts)))
            criterion = self._criterion(questions, examples, prompt, strategy)
            asked.append(Quiz(questions, examples, criterion))

        def adherence(strength: float) -> float:
            model = baked.at(strength).model
            cells = [self.condition(model, part) for part in asked]
            if any(math.isnan(cell.adherence) for cell in cells):
                raise InputError(
                    f"strength cannot be counted in answers: {asked[0].criterion.how}; or give "
                    "the strength as a scale"
                )
            return sum(cell.adherence * cell.questions for cell in cells) / count

        count = sum(len(part.questions) for part in asked)
        return grade(adherence, count, _GRADES_APART, _MOST_GRADES)

    def report(
        self,
        baked: BakedPrompt,
        prompt: str,
        questions: int,
        others: int,
        keep: Callable[[AnswerRow], None] = lambda row: None,
    ) -> BakeReport:
        """The four conditions of one of the baked prompts, and what is left of other strategies.

        Args:
            questions: held-out questions asked in each condition; 0 asks all.
            others: questions asked of each other strategy, with its own prompt; 0 asks none.
            keep: is given every question with its four answers.
        """
        strategy = baked.prompts[prompt]
        probe = self.probe(prompt, strategy, questions)
        champion, model = self._champion, baked.model
        scored = {
            name: probe.score(self.write(asked, probe.questions, given))
            for name, asked, given in (
                ("unprompted", champion, ""),
                ("prompted", champion, prompt),
                ("baked", model, ""),
                ("baked_prompted", model, prompt),
            )
        }
        for i, question in enumerate(probe.questions):
            answers = {name: marks[i] for name, (_, marks) in scored.items()}
            keep(AnswerRow(strategy or prompt, probe.criterion.how, question, answers))
        return BakeReport(
            prompt=prompt,
            strategy=strategy,
            kl_before=self.kl(champion, probe.trajectories),
            kl_after=self.kl(model, probe.trajectories),
            conditions={name: condition for name, (condition, _) in scored.items()},
            forgetting=self._forgetting(baked, others),
            steps=baked.outcome.steps,
            stopped_early=baked.outcome.stopped_early,
            strength=baked.strength,
            seconds=baked.seconds,
        )

    def write(self, model: PreTrainedModel, questions: Sequence[str], prompt: str) -> list[str]:
        """Greedy answers; the champion's are written once."""
        key = (prompt, tuple(questions))
        if model is self._champion and key in self._champions:
            return self._champions[key]
        answers = write_answers(
            model,
            self._tokenizer,
            [Asked(question, prompt) for question in questions],
            self._world,
            max_new_tokens=self._config.max_response_tokens,
            batch_size=self._config.generation_batch_size,
            progress=counting(self._say, "questions asked"),
        )
        if model is self._champion:
            self._champions[key] = answers
        return answers

    def _criterion(
        self,
        questions: Sequence[str],
        examples: Sequence[Example] | None,
        prompt: str,
        strategy: str,
    ) -> Criterion:
        if self._check is not None:
            return CheckerCriterion(self._check, questions)
        if strategy and examples is not None:
            return LayoutCriterion([strategy_layout(example) for example in examples])
        return LikelihoodCriterion(
            self._champion,
            self._tokenizer,
            prompt,
            questions,
            self.write(self._champion, questions, ""),
            self.write(self._champion, questions, prompt),
            self._config.generation_batch_size,
            self._world,
        )

    def _spare(
        self, prompt: str, strategy: str, count: int
    ) -> tuple[list[Example] | None, list[str]]:
        """Questions that are not held out, with their examples where there are any."""
        source = self._questions
        if strategy or source.has_examples:
            examples = source.spare(strategy, count)
            return examples, [example.question for example in examples]
        train = source.sets(self._champion, {prompt: strategy}).train
        return None, [question.question for question in train[-count:]]

    def _forgetting(self, baked: BakedPrompt, count: int) -> dict[str, tuple[Condition, Condition]]:
        """Champion and baked model on all other strategies, each with its own prompt.

        A model that is not asked the data's questions was never to know the strategies.
        """
        result: dict[str, tuple[Condition, Condition]] = {}
        source = self._questions
        if not count or not source.has_examples:
            return result
        for strategy in STRATEGIES:
            if strategy in baked.prompts.values():
                continue
            if not source.has_heldout(strategy):
                continue
            examples, prompt = source.heldout(strategy, count), STRATEGY_PROMPTS[strategy]
            questions = [example.question for example in examples]
            wanted = LayoutCriterion([strategy_layout(example) for example in examples])
            quiz = Quiz(questions, examples, wanted)
            result[strategy] = (
                self.condition(self._champion, quiz, prompt),
                self.condition(baked.model, quiz, prompt),
            )
        return result
