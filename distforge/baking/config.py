"""The configuration of step 1, composed of what its parts own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from distforge.baking.prompt.prompt_config import PromptBakingConfig
from distforge.baking.supervised.convergence import ConvergenceConfig
from distforge.champion.make import ChampionConfig
from distforge.data import DataConfig
from distforge.errors import require_choice, require_in
from distforge.models.storage import LoadDtype
from distforge.optim import OptimizerConfig
from distforge.registry import RegistryConfig
from distforge.telemetry import TelemetryConfig
from distforge.training.engine_config import EngineConfig
from distforge.training.guards import GuardConfig
from distforge.training.run_directory import Existing, PlacedRun, Resume
from distforge.training.supervised import SupervisedConfig

Mode = Literal["sft", "prompt", "both"]

# What may differ between two runs that are still the same run: where it goes, how it is watched.
NOT_IDENTITY = (
    *("output", "name", "existing", "resume", "dry_run", "telemetry", "registry"),
    "keep_checkpoints",
)


@dataclass(frozen=True)
class EvaluationConfig:
    """When and how held-out questions are asked.

    every_steps: optimizer steps between two validations (and at the end); > 0.
    heldout_questions: asked before and after training, the strategies in equal parts; 0 asks all.
    validation_questions: how many of these are asked at each evaluation, to pick the best weights.
    batch_size: questions generated at once on each rank.
    dtype: the exported model is loaded in for the final accuracy, and the champion for the one
        before training. "auto" is its own where this machine computes in that, else float32.
    stop_when_converged: end training once the validation and then all held-out questions meet the
        convergence targets.
    extensions: so many times, where the validation at the end misses a target, training goes on for
        half as many steps again, over which the learning rate falls once more.
    """

    every_steps: int = 200
    heldout_questions: int = 0
    validation_questions: int = 350
    batch_size: int = 128
    dtype: LoadDtype = "auto"
    stop_when_converged: bool = True
    extensions: int = 0

    def __post_init__(self) -> None:
        require_choice("dtype", self.dtype, get_args(LoadDtype))
        for name in ("every_steps", "validation_questions", "batch_size"):
            require_in("[1, inf]", **{name: getattr(self, name)})
        require_in("[0, inf]", heldout_questions=self.heldout_questions, extensions=self.extensions)


@dataclass(frozen=True)
class Step1Config(PlacedRun):
    """Step 1: bake the reasoning strategies into a model.

    seed: of new embedding rows and dropout; data, batches and champion have seeds of their own.
    checkpoint_every: steps between two checkpoints; 0 keeps none but the best weights.
    keep_checkpoints: whether they stay once the run has its result; nothing resumes from them then,
        and each is several times as large as the model.
    mode: "sft" trains on the traces; "prompt" bakes the seven strategy prompts, from what the model
        itself answers to them; "both" bakes the prompts first, then trains on the traces.
    prompt_baking: how prompts are baked; its engine is the run's own.
    target: "reasoning" bakes the traces; "direct" trains bare answers, the control that shows what
        the traces are worth.
    dry_run: print the resolved configuration, a memory estimate and DeepSpeed's JSON, and stop.
    """

    name: str = "step1"
    output: str = "runs"
    existing: Existing = "resume"
    resume: Resume = "off"
    seed: int = 0
    checkpoint_every: int = 500
    keep_checkpoints: bool = False
    mode: Mode = "sft"
    target: Literal["reasoning", "direct"] = "reasoning"
    dry_run: bool = False
    champion: ChampionConfig = field(default_factory=ChampionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prompt_baking: PromptBakingConfig = field(default_factory=PromptBakingConfig)
    training: SupervisedConfig = field(default_factory=SupervisedConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    convergence: ConvergenceConfig = field(default_factory=ConvergenceConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)

    def __post_init__(self) -> None:
        require_choice("existing", self.existing, get_args(Existing))
        require_choice("resume", self.resume, get_args(Resume))
        require_choice("mode", self.mode, get_args(Mode))
        require_in("[0, inf]", checkpoint_every=self.checkpoint_every)
