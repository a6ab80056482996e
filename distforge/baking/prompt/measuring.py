"""Measuring baked models against their champion: KL, answers, layouts, what was forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.baking.prompt.baked import BakedPrompt
from distforge.baking.prompt.distillation import DistillationLoss, logits_are_linear
from distforge.baking.prompt.grading import Grades, grade
from distforge.baking.prompt.heldout import mean_kl
from distforge.baking.prompt.prompt_config import PromptBakingConfig
from distforge.baking.prompt.prompt_report import score
from distforge.baking.prompt.questions import QuestionSource
from distforge.baking.prompt.trajectories import Trajectory, teacher_trajectories
from distforge.data import STRATEGIES, STRATEGY_PROMPTS, Example
from distforge.evaluation.adherence import Layout, layout, strategy_layout
from distforge.evaluation.scoring import Answered, answer_questions
from distforge.rendering.stops import padding_id
from distforge.reports.prompt_summary import BakeReport, Condition
from distforge.training.distributed import World

# Questions asked at each strength that grading measures, the largest difference in adherence
# between two of them that is left, and how many it measures at most.
_GRADED, _GRADES_APART, _MOST_GRADES = 140, 0.04, 24


@dataclass(frozen=True)
class Probe:
    """What is asked about one prompt: held-out questions, the layouts that answers should have, and
    the prompted champion's trajectories."""

    examples: Sequence[Example]
    wanted: Sequence[Layout]
    trajectories: Sequence[Trajectory]


class Measurer:
    """Asks and compares models; every method is collective over the world's ranks.

    Args:
        champion: the model that others are compared with.
        tokenizer: of all of them.
        questions: where questions come from.
        config: how long and in what portions answers are written, and their seed.
        world: this process.
    """

    def __init__(
        self,
        champion: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: QuestionSource,
        config: PromptBakingConfig,
        world: World,
    ) -> None:
        self._champion = champion
        self._tokenizer = tokenizer
        self._questions = questions
        self._config = config
        self._world = world

    def probe(self, prompt: str, strategy: str, count: int) -> Probe:
        """``count`` held-out questions about a prompt (0: all)."""
        examples = self._questions.heldout(strategy, count)
        wanted = self._wanted(examples, prompt, strategy)
        asked = self._questions.sets(self._champion, {prompt: strategy}).heldout
        trajectories = teacher_trajectories(
            self._champion, self._tokenizer, asked, self._config, self._world
        )
        return Probe(examples, wanted, trajectories)

    def condition(self, model: PreTrainedModel, probe: Probe, prompt: str = "") -> Condition:
        """Accuracy and adherence of a model on a probe's questions."""
        return score(self.ask(model, probe.examples, prompt), probe.wanted)

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
            examples = self._questions.spare(strategy, -(-_GRADED // len(baked.prompts)))
            asked.append((examples, self._wanted(examples, prompt, strategy)))

        def adherence(strength: float) -> float:
            model = baked.at(strength).model
            cells = [score(self.ask(model, examples, ""), wanted) for examples, wanted in asked]
            return sum(cell.adherence * cell.questions for cell in cells) / questions

        questions = sum(len(examples) for examples, _ in asked)
        return grade(adherence, questions, _GRADES_APART, _MOST_GRADES)

    def report(self, baked: BakedPrompt, prompt: str, questions: int, others: int) -> BakeReport:
        """The four conditions of one of the baked prompts, and what is left of other strategies.

        Args:
            questions: held-out questions asked in each condition; 0 asks all.
            others: questions asked of each other strategy, with its own prompt; 0 asks none.
        """
        strategy = baked.prompts[prompt]
        probe = self.probe(prompt, strategy, questions)
        champion, model = self._champion, baked.model
        conditions = {
            "unprompted": self.condition(champion, probe),
            "prompted": self.condition(champion, probe, prompt),
            "baked": self.condition(model, probe),
            "baked_prompted": self.condition(model, probe, prompt),
        }
        return BakeReport(
            prompt=prompt,
            strategy=strategy,
            kl_before=self.kl(champion, probe.trajectories),
            kl_after=self.kl(model, probe.trajectories),
            conditions=conditions,
            forgetting=self._forgetting(baked, others),
            steps=baked.outcome.steps,
            stopped_early=baked.outcome.stopped_early,
            strength=baked.strength,
            seconds=baked.seconds,
        )

    def ask(
        self, model: PreTrainedModel, examples: Sequence[Example], prompt: str
    ) -> list[Answered]:
        """Greedy answers, judged."""
        return answer_questions(
            model,
            self._tokenizer,
            examples,
            self._world,
            max_new_tokens=self._config.max_response_tokens,
            batch_size=self._config.generation_batch_size,
            prompt=prompt,
        )

    def _wanted(self, examples: Sequence[Example], prompt: str, strategy: str) -> list[Layout]:
        """A strategy's layout is that of the verified traces; any other prompt's is what the
        prompted champion writes, which then adheres by definition."""
        if strategy:
            return [strategy_layout(example) for example in examples]
        return [layout(a.text) for a in self.ask(self._champion, examples, prompt)]

    def _forgetting(self, baked: BakedPrompt, count: int) -> dict[str, tuple[Condition, Condition]]:
        """Champion and baked model on all other strategies, each with its own prompt."""
        result = {}
        for strategy in STRATEGIES:
            if not count or strategy in baked.prompts.values():
                continue
            examples, prompt = self._questions.heldout(strategy, count), STRATEGY_PROMPTS[strategy]
            wanted = [strategy_layout(example) for example in examples]
            before, after = (
                score(self.ask(model, examples, prompt), wanted)
                for model in (self._champion, baked.model)
            )
            result[strategy] = before, after
        return result
