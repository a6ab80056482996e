"""The configuration of prompt baking."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from distforge.errors import InputError, require_choice, require_in
from distforge.optim import AdamWConfig, OptimizerConfig, ScheduleConfig
from distforge.training.engine_config import EngineConfig
from distforge.training.supervised import SupervisedConfig

Method = Literal["lora", "full"]
Questions = Literal["auto", "dataset", "everyday", "self"]


@dataclass(frozen=True)
class BakeTrainingConfig(SupervisedConfig):
    """As in step 1; what is 0 is chosen by the model, the machine and the questions.

    epochs: passes over the questions; 0 chooses. ``max_steps`` overrides it.
    batch_size: questions a step, over all ranks and micro-batches; 0 chooses.
    micro_batches: portions a step is computed in, over all ranks; 0 chooses.
    schedule: learning rate over the whole bake.
    seed: order of the questions.
    """

    epochs: float = 0.0
    max_steps: int = 0
    batch_size: int = 0
    micro_batches: int = 0
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(kind="linear", warmup_steps=5, final_fraction=0.02)
    )

    def __post_init__(self) -> None:
        require_in(
            "[0, inf]",
            epochs=self.epochs,
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            micro_batches=self.micro_batches,
        )
        if self.batch_size and self.micro_batches and (self.max_steps or self.epochs):
            super().__post_init__()


def _engine() -> EngineConfig:
    return EngineConfig(dtype="float32", qk_clip_every=0)


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(name="adamw", adamw=AdamWConfig(lr=0.0, weight_decay=0.0))


@dataclass(frozen=True)
class LoraSettings:
    """The adapter that a prompt is baked into (Hu et al. 2021, arXiv 2106.09685), through peft.

    rank: of every update; alpha: its scale is alpha / rank; both positive.
    target_modules: "all-linear" (all but the output head), or names as peft takes them.
    """

    rank: int = 32
    alpha: float = 64.0
    target_modules: tuple[str, ...] = ("all-linear",)

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not self.target_modules:
            raise InputError(
                f"lora has rank {self.rank}, alpha {self.alpha} and {len(self.target_modules)} "
                "target modules; expected positive numbers and at least one module"
            )


@dataclass(frozen=True)
class PromptBakingConfig:
    """How one prompt is baked. What is 0 or "auto" by default is chosen by the model, the machine
    and the questions that are there.

    method: "lora" trains an adapter, and the model without it is the teacher; "full" trains every
        weight of a copy, and the model itself is the teacher.
    lora: the adapter.
    questions: "dataset" takes those of the data, "everyday" a shipped list of what people ask,
        "self" lets the model write its own.
    num_questions: questions to train on, for each prompt; 0 chooses by what there is.
    heldout_questions: others, to measure KL on; 0 chooses.
    temperature: of sampled responses; > 0, 1 is the teacher's own distribution.
    max_response_tokens: longest response, for baking and for answering; 0 chooses by the model and
        the machine.
    on_policy: share of steps on the student's own responses (λ), in [0, 1].
    beta: 0 is forward KL, 1 reverse KL, between them the generalised Jensen-Shannon divergence.
    top_k: compare this many outcomes and the rest as one; 0 compares the whole vocabulary.
    cache_teacher: keep the teacher's states (or its ``top_k``) on responses that do not change, in
        host memory, instead of running it at every step.
    chunk_elements: most logits held at once in one tensor.
    stop_fraction: stop where held-out KL has come down to this fraction of what it was; in [0, 1),
        0 trains to the end.
    evaluate_every: steps between two measurements of held-out KL; 0 chooses.
    replay: in a sequence, share of a later bake's questions that belong to earlier prompts and
        hold the model where it is on them; in [0, 1).
    max_drift: pursuit stops where the prompted model has moved so far from the prompted champion,
        in nats a token; > 0.
    generation_batch_size: responses written at once on each rank.
    seed: of questions, responses and the adapter's first weights.
    optimizer: AdamW by default, whose rate of 0 is chosen like the rest.
    engine: float32 by default: KL comes down to where 16-bit logits are noise.
    """

    method: Method = "lora"
    lora: LoraSettings = field(default_factory=LoraSettings)
    questions: Questions = "auto"
    num_questions: int = 0
    heldout_questions: int = 0
    temperature: float = 1.0
    max_response_tokens: int = 0
    on_policy: float = 0.0
    beta: float = 0.0
    top_k: int = 0
    cache_teacher: bool = True
    chunk_elements: int = 1 << 22
    stop_fraction: float = 0.0
    evaluate_every: int = 0
    replay: float = 0.25
    max_drift: float = 0.5
    generation_batch_size: int = 128
    seed: int = 0
    training: BakeTrainingConfig = field(default_factory=BakeTrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=_optimizer)
    engine: EngineConfig = field(default_factory=_engine)

    def __post_init__(self) -> None:
        require_choice("method", self.method, get_args(Method))
        require_choice("questions", self.questions, get_args(Questions))
        for name in ("chunk_elements", "generation_batch_size"):
            require_in("[1, inf]", **{name: getattr(self, name)})
        for name in (
            *("num_questions", "heldout_questions", "max_response_tokens", "evaluate_every"),
            "top_k",
        ):
            require_in("[0, inf]", **{name: getattr(self, name)})
        require_in("[0, 1]", on_policy=self.on_policy, beta=self.beta)
        require_in("[0, 1)", stop_fraction=self.stop_fraction, replay=self.replay)
        require_in("(0, inf]", temperature=self.temperature, max_drift=self.max_drift)
        if 0 < self.num_questions < self.training.batch_size:
            raise InputError(
                f"num_questions is {self.num_questions}; expected at least the batch_size, "
                f"{self.training.batch_size}"
            )
