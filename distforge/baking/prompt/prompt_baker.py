"""`PromptBaker`: a prompt goes into a model's weights, so that the question alone is enough.

After Bhargava et al. 2024, "Prompt Baking" (arXiv 2409.13697): bake, half-bake, pursue, bake one
after another.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.baking.prompt.baked import BakedPrompt, BakedSequence, Pursuit
from distforge.baking.prompt.delta import RECORD_FILE, check_strength, read_delta
from distforge.baking.prompt.grading import Grades
from distforge.baking.prompt.measuring import Measurer
from distforge.baking.prompt.prompt_config import PromptBakingConfig
from distforge.baking.prompt.prompt_training import BakeTraining
from distforge.baking.prompt.questions import QuestionSource, strategy_of
from distforge.baking.prompt.sizing import described, sized
from distforge.baking.prompt.trajectories import (
    PromptedQuestion,
    check_prompt,
    check_room,
    kept_trajectories,
)
from distforge.data import STRATEGIES, Example
from distforge.errors import InputError
from distforge.evaluation.checker import Checker
from distforge.rendering import Renderer
from distforge.reports.prompt_summary import AnswerRow, BakeReport, ForgettingMatrix
from distforge.telemetry import RunLogger, TelemetryConfig
from distforge.training.distributed import World
from distforge.training.keeping import drop_checkpoints
from distforge.training.node_disks import copy_to_all

_TRAJECTORIES_FILE = "trajectories.json"
_ADAPTER_DIRECTORY = "adapter"


class PromptBaker:
    """Bakes prompts into ``model``, which itself stays as it is.

        baker = PromptBaker(model, tokenizer, "cpu")
        baked = baker.bake("Strategy: think step by step and write every state.")
        baked.model.save_pretrained("baked")     # baked.at(0.5).model is half-baked
        report = baker.report(baked)

    Every method is collective over the world's ranks.

    Args:
        model: any Hugging Face causal LM.
        tokenizer: its tokenizer, with an end of sequence.
        device: where to compute; ignored where ``world`` is given.
        config: see `PromptBakingConfig`; what it leaves open is decided by `sized`.
        examples: questions of both splits; by default see `sized`.
        world: this process among others.
        logger: where metrics go; by default nowhere.
        directory: where trajectories, checkpoints and adapters are kept, so that what was begun
            is continued; by default nowhere.
        check: says of a question and an answer whether the answer follows the prompt; see
            `following` for what is done without one.

    Raises:
        InputError: the tokenizer lacks an end of sequence, or its chat template cannot ask a
            question.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: str | torch.device = "cpu",
        *,
        config: PromptBakingConfig | None = None,
        examples: Sequence[Example] | None = None,
        world: World | None = None,
        logger: RunLogger | None = None,
        directory: Path | None = None,
        check: Checker | None = None,
    ) -> None:
        Renderer(tokenizer)  # refuses what could not be asked
        self.world = world or World(0, 0, 1, torch.device(device))
        self.model = model.to(self.world.device)
        self.tokenizer = tokenizer
        self._logger = logger or RunLogger(Path(), TelemetryConfig(), {}, "none", enabled=False)
        say = self._logger.say
        given = config or PromptBakingConfig()
        self.config = sized(given, model, tokenizer, self.world, examples)
        if self.config != given:
            say(described(self.config, model, self.world))
        self._questions = QuestionSource(tokenizer, self.config, examples, self.world, say)
        self.measurer = Measurer(
            self.model, tokenizer, self._questions, self.config, self.world, check, say
        )
        self._directory = directory
        self._logged_steps = 0

    def bake(self, prompt: str, *, strategy: str | None = None) -> BakedPrompt:
        """Bake one prompt.

        ``strategy`` says whose questions the prompt is for: by default those of the strategy whose
        prompt it is, and everybody's (an empty string) for any other prompt.

        Raises:
            InputError: an empty prompt, one that the tokenizer cannot encode or that does not fit
                the context with its questions and answers; nothing is written then.
        """
        return self._bake(self.model, self._checked({prompt: strategy}), "bake")

    def bake_together(self, prompts: Mapping[str, str]) -> BakedPrompt:
        """Bake several prompts (to their strategies) in one go, each on its own questions."""
        return self._bake(self.model, self._checked(prompts), "together")

    def half_bake(
        self,
        prompt: str,
        strength: float,
        *,
        strategy: str | None = None,
        graded: bool = False,
        early_stop: bool = False,
    ) -> BakedPrompt:
        """Bake ``prompt`` to a degree.

        By default the whole bake is scaled by ``strength`` in [0, 1.5]. ``graded`` scales it so
        that this share of the answers follows the prompt, of those that the whole bake turns; in
        [0, 1], see `grade`. With ``early_stop`` training ends where held-out KL has lost that share
        of its first value; in (0, 1).

        Raises:
            InputError: a strength out of its range, ``graded`` and ``early_stop`` together, or
                what `bake` refuses.
        """
        check_strength(strength, graded=graded)
        if graded and early_stop:
            raise InputError("a bake is graded or stopped early; give one of the two")
        if not early_stop:
            baked = self.bake(prompt, strategy=strategy)
            return baked.at(self.grade(baked).strength(strength) if graded else strength)
        if not 0 < strength < 1:
            raise InputError(f"strength is {strength}; stopping early needs one between 0 and 1")
        config = dataclasses.replace(self.config, stop_fraction=1 - strength, evaluate_every=1)
        prompts = self._checked({prompt: strategy})
        return self._bake(self.model, prompts, f"early-{strength:g}", config=config)

    def grade(self, baked: BakedPrompt) -> Grades:
        """What share of answers follows the prompt at which strength of ``baked``."""
        return self.measurer.grade(baked)

    def pursue(self, prompt: str, rounds: int, *, strategy: str | None = None) -> Pursuit:
        """Bake the prompt, then bake the prompted baked model, and so on (prompt pursuit).

        Raises:
            InputError: fewer than one round, or what `bake` refuses.
        """
        if rounds < 1:
            raise InputError(f"rounds is {rounds}; expected 1 or more")
        prompts = self._checked({prompt: strategy})
        anchors = self.measurer.responses(
            self.model, self._questions.sets(self.model, prompts).heldout
        )
        bakes: list[BakedPrompt] = []
        drift: list[float] = []
        model = self.model
        for number in range(1, rounds + 1):
            baked = self._bake(model, prompts, f"round-{number}")
            model = baked.model
            moved = self.measurer.kl(model, anchors, prompted=True)
            if bakes and moved > self.config.max_drift:
                self._logger.say(
                    f"round {number} moved the prompted model by {moved:.3f} nats a token, over "
                    f"max_drift {self.config.max_drift}: it is dropped"
                )
                return Pursuit(tuple(bakes), tuple(drift), held_back=True)
            bakes.append(baked)
            drift.append(moved)
        return Pursuit(tuple(bakes), tuple(drift), held_back=False)

    def bake_sequence(
        self,
        prompts: Sequence[str],
        *,
        strategies: Sequence[str | None] | None = None,
        questions: int = 100,
    ) -> BakedSequence:
        """Bake the prompts one after another; the order matters.

        Later bakes rehearse earlier prompts' questions (``config.replay``), on which the model is
        held where it is. The forgetting matrix asks ``questions`` of each prompt after each bake.

        Raises:
            InputError: no prompt, one given twice, or what `bake` refuses.
        """
        _check_distinct(prompts)
        if not prompts:
            raise InputError("no prompt is given; expected at least one")
        whose = strategies or [None] * len(prompts)
        checked = self._checked(dict(zip(prompts, whose, strict=True)))
        probes = [self.measurer.probe(text, who, questions) for text, who in checked.items()]
        models = [self.model]
        bakes: list[BakedPrompt] = []
        earlier: list[str] = []
        for number, (text, strategy) in enumerate(checked.items(), start=1):
            baked = self._bake(models[-1], {text: strategy}, f"bake-{number}", earlier=earlier)
            bakes.append(baked)
            models.append(baked.model)
            earlier.append(strategy)
        rows = [[self.measurer.condition(model, probe) for probe in probes] for model in models]
        matrix = ForgettingMatrix(
            prompts=tuple(checked),
            kl=tuple(tuple(self.measurer.kl(m, p.trajectories) for p in probes) for m in models),
            accuracy=tuple(tuple(cell.accuracy for cell in row) for row in rows),
            adherence=tuple(tuple(cell.adherence for cell in row) for row in rows),
        )
        return BakedSequence(tuple(bakes), matrix)

    def load(self, directory: Path, strength: float = 1.0) -> BakedPrompt:
        """A bake that `BakedPrompt.save` wrote, at any strength.

        Raises:
            InputError: it cannot be read, was baked into another model, or a bad strength.
        """
        check_strength(strength)
        delta, record = read_delta(directory, self.model)
        return BakedPrompt.from_record(self.model, delta, record).at(strength)

    def report(
        self,
        baked: BakedPrompt,
        *,
        prompt: str = "",
        questions: int = 0,
        others: int = 20,
        keep: Callable[[AnswerRow], None] = lambda row: None,
    ) -> BakeReport:
        """Ask held-out questions in the four conditions, and other strategies' for forgetting.

        Args:
            baked: a bake of this baker.
            prompt: which of its prompts; by default the first.
            questions: how many held-out ones; 0 asks all.
            others: how many of each other strategy; 0 asks none.
            keep: is given every question with its four answers.
        """
        return self.measurer.report(baked, prompt or baked.prompt, questions, others, keep)

    def check(self, prompts: Sequence[str], strategy: str = "") -> None:
        """Raise the `InputError` that baking ``prompts`` would raise, without doing anything."""
        _check_distinct(prompts)
        self._checked(dict.fromkeys(prompts, strategy or None))

    def _checked(self, prompts: Mapping[str, str | None]) -> dict[str, str]:
        """The prompts as they will be read, each with its strategy; refuses what can be refused."""
        checked = {}
        for prompt, strategy in prompts.items():
            text = check_prompt(self.tokenizer, prompt)
            if strategy and strategy not in STRATEGIES:
                raise InputError(
                    f"strategy is {strategy!r}; expected one of {', '.join(STRATEGIES)}"
                )
            checked[text] = strategy_of(text) if strategy is None else strategy
        if self.config.questions != "self":
            sets = self._questions.sets(self.model, checked)
            self._check_room([*sets.train, *sets.heldout])
        return checked

    def _bake(
        self,
        base: PreTrainedModel,
        prompts: Mapping[str, str],
        name: str,
        *,
        earlier: Sequence[str] = (),
        config: PromptBakingConfig | None = None,
    ) -> BakedPrompt:
        directory = self._directory / name if self._directory else None
        done = directory / _ADAPTER_DIRECTORY if directory else None
        if done and self.world.broadcast_object((done / RECORD_FILE).is_file()):
            copy_to_all(done, self.world)
            self._drop_checkpoints(done.parent)
            return BakedPrompt.from_record(base, *read_delta(done, base))
        began = time.monotonic()
        sets = self._questions.sets(base, prompts)
        train = [*sets.train, *self._questions.rehearsal(earlier, len(sets.train))]
        self._check_room([*train, *sets.heldout])
        written = kept_trajectories(
            directory / _TRAJECTORIES_FILE if directory else None,
            self.world,
            lambda: {
                "train": self.measurer.responses(base, train),
                "heldout": self.measurer.responses(base, sets.heldout),
            },
        )
        training = BakeTraining(
            base,
            self.tokenizer,
            train,
            written["train"],
            written["heldout"],
            config or self.config,
            self.world,
            self._logger,
            directory,
        )
        delta, outcome = training.run(self._logged_steps)
        self._logged_steps += outcome.steps + 1
        seconds = round(time.monotonic() - began, 1)
        baked = BakedPrompt(dict(prompts), base, delta, outcome, seconds)
        if done and self.world.is_main:
            baked.save(done)
        self.world.barrier()
        if done:
            self._drop_checkpoints(done.parent)
        return baked

    def _drop_checkpoints(self, directory: Path) -> None:
        if self.world.is_main:
            drop_checkpoints(directory)

    def _check_room(self, questions: Sequence[PromptedQuestion]) -> None:
        check_room(self.model, self.tokenizer, questions, self.config.max_response_tokens)


def _check_distinct(prompts: Sequence[str]) -> None:
    texts = [prompt.strip() for prompt in prompts]
    for text in texts:
        if texts.count(text) > 1:
            raise InputError(f"the prompt {text[:60]!r} is given twice; expected each once")
