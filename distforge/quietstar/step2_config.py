"""The configuration of step 2, composed of what its parts own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, Self, get_args

from distforge.data import DataConfig
from distforge.data.free_text import TextConfig
from distforge.errors import InputError, require_choice
from distforge.optim import AdamWConfig, MuonGrokfastConfig, OptimizerConfig
from distforge.quietstar.config import (
    EpisodeConfig,
    LearnerConfig,
    ObjectiveConfig,
    ProbeConfig,
    ScreeningConfig,
)
from distforge.quietstar.engines import require_engine_fits
from distforge.registry import RegistryConfig
from distforge.rollouts import RolloutConfig
from distforge.telemetry import TelemetryConfig
from distforge.theater.control import ControlConfig
from distforge.thinking.thoughts import ThoughtConfig
from distforge.training.run_directory import Existing, PlacedRun, Resume

Task = Literal["questions", "text"]

# What may differ between two runs that are still the same run: where it goes, how it is watched,
# and where its rollouts come from.
NOT_IDENTITY = (
    "output",
    "name",
    "existing",
    "resume",
    "dry_run",
    "telemetry",
    "registry",
    "keep_checkpoints",
    "rollouts.num_actors",
    "rollouts.python",
    "rollouts.address",
)


@dataclass(frozen=True)
class Step2Config(LearnerConfig, PlacedRun):
    """Step 2: reinforce the thoughts of a baked model.

    baked: the model that step 1 baked, a directory; or the directory of its run.
    baked_accuracy: fraction of held-out questions of its own data that the baked model answers, for
        the hand-off; only of a model for which no run of step 1 has a record. By default that
        record's.
    task: "questions" thinks before the answer of reasoning questions; "text" inside free text.
    data: the questions; those of the baked model's run where nothing is given but ``max_length``.
    screening: of the questions, before training; see `ScreeningConfig`.
    text: the free text.
    control: of equal compute, which the verdict holds the trained model against; of questions.
    Where ``reward.function`` is set, other defaults go with it, see `for_rewards`.
    mixing: with "text", whether a small head mixes the predictions with and without the thought.
    seed: of the mixing head and of dropout; episodes have a seed of their own.
    keep_checkpoints: whether they stay once the run has its result; nothing resumes from them then,
        and each is several times as large as the model.
    dry_run: say what would be done, and do nothing.
    """

    name: str = "step2"
    output: str = "runs"
    existing: Existing = "resume"
    resume: Resume = "off"
    baked: str = "runs/step1"
    baked_accuracy: float | None = None
    task: Task = "questions"
    mixing: bool = True
    seed: int = 0
    keep_checkpoints: bool = False
    dry_run: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    screening: ScreeningConfig = field(default_factory=ScreeningConfig)
    text: TextConfig = field(default_factory=TextConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    control: ControlConfig = field(default_factory=ControlConfig)

    @classmethod
    def for_settings(cls, named: Collection[str]) -> Self | None:
        """The defaults where these settings are given; see `load_config`."""
        if "reward.function" in named:
            return cls.for_rewards()
        return cls.for_text() if "text.path" in named else None

    @classmethod
    def for_text(cls) -> Self:
        """The defaults of free text: each text is a micro-batch, since it holds thoughts at many
        places, and all their activations."""
        return cls(episodes=EpisodeConfig(micro_batches=0))

    @classmethod
    def for_rewards(cls) -> Self:
        """The defaults where functions judge whole answers: a first run that two CPU cores end
        within the hour or two for a model of 100M parameters.

        Questions whose answers all earned the same are not learned from, and each question is a
        micro-batch: a group of long answers is what the learner's memory holds.
        """
        return cls(
            # At 1, a small model's every tenth word is a stray one, and no long answer is right.
            thought=ThoughtConfig(max_tokens=128, closing="learned", temperature=0.7),
            # With a large vocabulary, the exact divergence costs as much as some layers.
            objective=ObjectiveConfig(entropy_bonus=0.0, kl_estimator="k1"),
            episodes=EpisodeConfig(
                episodes=160,
                batch_size=4,
                episodes_per_request=0,
                micro_batches=0,
                min_spread=1e-6,
                warmup_episodes=16,
            ),
            rollouts=RolloutConfig(threads_per_actor=0),
            optimizer=OptimizerConfig(
                name="adamw",
                adamw=AdamWConfig(lr=1e-5, weight_decay=0.0),
                muon_grokfast=MuonGrokfastConfig.rl().replace(kl_coefficient=0.02),
            ),
            probe=ProbeConfig(every_steps=10, items=32, batch_size=32, exam_items=100),
            checkpoint_every=20,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("existing", self.existing, get_args(Existing))
        require_choice("resume", self.resume, get_args(Resume))
        require_choice("task", self.task, get_args(Task))
        if not self.baked:
            raise InputError("baked is empty; name the model that step 1 baked")
        if (self.task == "text") != (self.reward.kind == "prediction_gain"):
            raise InputError(
                f"task is {self.task!r} with the reward {self.reward.kind!r}; 'text' goes with "
                "'prediction_gain', 'questions' with the others"
            )
        if self.reward.function:
            self._check_writing()
        require_engine_fits(self)
        if self.task == "text" and not self.text.path:
            raise InputError("task is 'text' and text.path is empty; name a file or a directory")
        if self.task == "text" and self.screening.items:
            raise InputError(
                "screening.items is above 0 with task 'text', whose items have many places; "
                "set it to 0"
            )
        if self.task == "questions" and self.positions.kind != "answer":
            raise InputError(
                f"positions.kind is {self.positions.kind!r} with task 'questions', which thinks "
                "before the answer; set it to 'answer'"
            )

    def _check_writing(self) -> None:
        if self.task == "text":
            raise InputError(
                "reward.function judges answers to questions, and task is 'text'; set it to "
                "'questions'"
            )
        if self.screening.items or self.rollback.every_steps:
            raise InputError(
                "reward.function judges whole answers: screening.items and rollback.every_steps, "
                "which look at thoughts alone, have to be 0"
            )
