"""The configuration of step 2's reinforcement learning, each part beside what it governs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from distforge.baking.prompt.prompt_config import LoraSettings
from distforge.errors import InputError, require_choice, require_in
from distforge.evaluation.benchmarks import BenchmarksConfig
from distforge.optim import MuonGrokfastConfig, OptimizerConfig
from distforge.optim.schedule import ScheduleConfig, ScheduleKind
from distforge.rollouts import RolloutConfig
from distforge.theater.config import TheaterConfig
from distforge.thinking.positions import PositionsConfig
from distforge.thinking.thoughts import ThoughtConfig
from distforge.training.engine_config import EngineConfig
from distforge.training.guards import GuardConfig
from distforge.training.supervised import SupervisedConfig

Baseline = Literal["rloo", "group_mean", "dr_grpo", "grpo", "reinforce_pp", "ema", "quietstar_relu"]
Reward = Literal["answer_probability", "exact_match", "prediction_gain"]
KlEstimator = Literal["exact", "k1"]
Change = Literal["kl", "lr", "seed"]


@dataclass(frozen=True)
class RewardConfig:
    """What a thought is rewarded for.

    kind: "answer_probability", p(answer | question, thought), and "exact_match", 1 where every
        token of the answer is the likeliest, suit questions. "prediction_gain" suits free text:
        how many nats likelier the next tokens are, by the mixture where there is a mixing head,
        than without a thought under a slowly moving average of the model (`scorer_decay`).
    function: rewards of what the model writes, thought and answer, instead of ``kind``: "math",
        "exact", "choice", "task", "regex:PATTERN", or functions of your own in TRL's calling
        convention, "rewards.py:score" or "package.module:score". Several are added up.
    weights: of these, one each; by default 1.
    deadline_seconds: that a call of a function may take.
    instruction: text put before each question.
    signal_steps: the run stops when in this many first steps no group holds two different rewards.
    floor: a token's log-probability counts as no less than this (nats, < 0) in "prediction_gain".
    scorer_decay: of that moving average, an optimizer step at a time, in [0, 1).
    """

    kind: Reward = "answer_probability"
    function: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    deadline_seconds: float = 60.0
    instruction: str = ""
    signal_steps: int = 10
    floor: float = -3.0
    scorer_decay: float = 0.99

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, get_args(Reward))
        require_in("(-inf, 0)", floor=self.floor)
        require_in("(0, inf)", deadline_seconds=self.deadline_seconds)
        require_in("[1, inf]", signal_steps=self.signal_steps)
        require_in("[0, 1)", scorer_decay=self.scorer_decay)


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss of reinforcement learning.

    baseline: what a reward is compared with. "rloo", the mean of the other thoughts of its group:
        unbiased. "group_mean" and "dr_grpo", the mean of the whole group. "grpo" divides that by
        the group's standard deviation, "reinforce_pp" divides "rloo" by that of the batch. "ema", a
        running mean of earlier batches: needs no group. "quietstar_relu" keeps only what is above
        the group's mean: biased, for comparison.
    ema_decay: of baseline "ema".
    max_importance: > 0, the most that a stale token counts, relative to a fresh one: its weight
        policy / behaviour is cut there.
    min_ess: in [0, 1): an update on stale thoughts is skipped where the effective sample size of
        their tokens, so weighted, is below this fraction of their number.
    kl_estimator: of the divergence from the baked model: "exact" sums over the vocabulary, in the
        loss; "k1" is the log-ratio of the sampled tokens and needs no second set of logits in the
        backward pass. Either way what a token leads to later comes off its reward, compared with
        the other thoughts of the group. The coefficient is the optimizer preset's
        ``kl_coefficient``.
    nll_weight: >= 0, of the cross-entropy of the answer after the thought.
    entropy_bonus: >= 0, nats of policy entropy a token count so much; falls to 0 over the run.
    """

    baseline: Baseline = "rloo"
    ema_decay: float = 0.9
    max_importance: float = 2.0
    min_ess: float = 0.3
    kl_estimator: KlEstimator = "exact"
    nll_weight: float = 0.1
    entropy_bonus: float = 0.01

    def __post_init__(self) -> None:
        require_choice("baseline", self.baseline, get_args(Baseline))
        require_choice("kl_estimator", self.kl_estimator, get_args(KlEstimator))
        require_in("[0, 1)", ema_decay=self.ema_decay, min_ess=self.min_ess)
        require_in("(0, inf]", max_importance=self.max_importance)
        require_in("[0, inf]", nll_weight=self.nll_weight, entropy_bonus=self.entropy_bonus)


@dataclass(frozen=True)
class EpisodeConfig:
    """How much experience, in what portions. An episode is one item with its group of thoughts.

    episodes: in the whole run.
    batch_size: episodes an optimizer step.
    thoughts: of each group, at every place of an item.
    episodes_per_request: that an engine generates at once; divides ``batch_size``. Actors share the
        requests of a step, so take at least as many requests as actors. 0 is the whole batch.
    min_spread: >= 0: an episode is not learned from where the rewards in its groups differ by less:
        nothing says which thought is better, and learning from it costs as much as from another. 0
        learns from all.
    micro_batches: portions that a step is computed in, over all ranks; a multiple of their number.
        0 is one for each episode.
    warmup_episodes: over which the learning rate rises.
    schedule: how it goes on, "cosine", "linear" or "constant".
    final_fraction: of the learning rate, at the end.
    seed: order of the items, and sampling.
    """

    episodes: int = 10_000
    batch_size: int = 32
    thoughts: int = 8
    episodes_per_request: int = 8
    min_spread: float = 0.0
    micro_batches: int = 1
    warmup_episodes: int = 500
    schedule: ScheduleKind = "cosine"
    final_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "thoughts"):
            require_in("[1, inf]", **{name: getattr(self, name)})
        for name in ("episodes_per_request", "micro_batches"):
            require_in("[0, inf]", **{name: getattr(self, name)})
        require_in("[0, inf]", min_spread=self.min_spread)
        if self.episodes < self.batch_size:
            raise InputError(
                f"episodes is {self.episodes}, fewer than one batch of {self.batch_size}"
            )
        if self.batch_size % self.request_size:
            raise InputError(
                f"episodes_per_request is {self.episodes_per_request}; expected a divisor of "
                f"batch_size ({self.batch_size})"
            )
        if self.micro_batches > self.batch_size:
            raise InputError(
                f"micro_batches is {self.micro_batches}; expected 1 to batch_size "
                f"({self.batch_size})"
            )

    @property
    def request_size(self) -> int:
        """Episodes of a request."""
        return self.episodes_per_request or self.batch_size

    @property
    def requests_per_step(self) -> int:
        """Rollouts that a pool returns for a step."""
        return self.batch_size // self.request_size

    @property
    def portions(self) -> int:
        """Micro-batches of a step."""
        return self.micro_batches or self.batch_size

    @property
    def loop(self) -> SupervisedConfig:
        """The same, in the words of the training loop."""
        return SupervisedConfig(
            max_steps=max(1, round(self.episodes / self.batch_size)),
            batch_size=self.batch_size,
            micro_batches=self.portions,
            schedule=ScheduleConfig(
                kind=self.schedule,
                warmup_steps=round(self.warmup_episodes / self.batch_size),
                final_fraction=self.final_fraction,
            ),
            seed=self.seed,
        )


@dataclass(frozen=True)
class ProbeConfig:
    """When and how the thoughts are examined on held-out items.

    every_steps: optimizer steps between two probes (and at the end); > 0.
    items: held-out items probed each time, at most half of them; they pick the best weights. The
        final figures are over the others.
    batch_size: items probed at once.
    exam_items: other held-out ones that reward functions examine the models on at the end; 0 takes
        all.
    coherence_items: of them, those whose thoughts' coherence is measured.
    completions_every: optimizer steps between two records of what the model wrote, with its
        rewards, in ``completions.jsonl``, where reward functions judge; 0 keeps none.
    min_sampled_accuracy: fraction of held-out items that the baked model must answer with sampled
        thoughts before reinforcement learning starts; from less, small models collapse.
    """

    every_steps: int = 50
    items: int = 350
    batch_size: int = 128
    coherence_items: int = 64
    exam_items: int = 0
    completions_every: int = 10
    min_sampled_accuracy: float = 0.6

    def __post_init__(self) -> None:
        for name in ("every_steps", "items", "batch_size", "coherence_items"):
            require_in("[1, inf]", **{name: getattr(self, name)})
        require_in("[0, inf]", exam_items=self.exam_items, completions_every=self.completions_every)
        require_in("[0, 1]", min_sampled_accuracy=self.min_sampled_accuracy)


@dataclass(frozen=True)
class ScreeningConfig:
    """How questions are screened before training.

    items: training items that the baked model tries first, thinking greedily; 0 learns from all
        items, untried.
    sure: an item is left out where the model gives its thought at least this probability; in
        (0, 1].
    """

    items: int = 0
    sure: float = 0.9

    def __post_init__(self) -> None:
        require_in("[0, inf]", **{"screening.items": self.items})
        require_in("(0, 1]", **{"screening.sure": self.sure})


@dataclass(frozen=True)
class RollbackConfig:
    """When the weights are judged during training, and what follows where thoughts are theatre.

    A run goes back to the last weights that passed, or to the start where none did. With the same
    seeds and settings the same path would lead to the same verdict, so each rollback changes one
    thing more, which stays changed.

    every_steps: optimizer steps between two verdicts, before the last step; 0: only the
        one on the exported model, after which nothing is rolled back.
    patience: THEATRE verdicts in a row that roll back, > 0. One alone may be chance.
    retries: rollbacks in a run; the next row of THEATRE verdicts ends training.
    changes: what each rollback changes, in order, at least one for each: "kl" doubles the KL
        coefficient, "lr" halves the learning rate, "seed" samples other thoughts.
    """

    every_steps: int = 0
    patience: int = 2
    retries: int = 2
    changes: tuple[Change, ...] = ("kl", "lr", "seed")

    def __post_init__(self) -> None:
        require_in(
            "[0, inf]",
            **{"rollback.every_steps": self.every_steps, "rollback.retries": self.retries},
        )
        require_in("[1, inf]", **{"rollback.patience": self.patience})
        for change in self.changes:
            require_choice("rollback.changes", change, get_args(Change))
        if len(self.changes) < self.retries:
            raise InputError(
                f"rollback.retries is {self.retries} with {len(self.changes)} rollback.changes; "
                "name what each retry changes, or lower retries"
            )


def _rl_optimizer() -> OptimizerConfig:
    return OptimizerConfig(muon_grokfast=MuonGrokfastConfig.rl())


def _some_questions() -> BenchmarksConfig:
    return BenchmarksConfig(limit=100)


@dataclass(frozen=True)
class LearnerConfig:
    """All that reinforcement learning depends on, but model and data.

    checkpoint_every: optimizer steps between two checkpoints; 0 keeps none but the best weights
        and, in a run that is judged, what it can go back to.
    benchmarks: public ones that are asked at every probe, with thoughts.
    adapter: "lora" trains an adapter alone, of less memory and time: the baked model is the same
        with it off, and it is merged where it is sampled from and exported. It wants about ten
        times the learning rate. "none" trains every weight.
    The others are described where they are defined. The weight of the divergence from the baked
    model is ``optimizer.muon_grokfast.kl_coefficient``, whichever optimizer is used.
    """

    checkpoint_every: int = 100
    thought: ThoughtConfig = field(default_factory=ThoughtConfig)
    positions: PositionsConfig = field(default_factory=PositionsConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    optimizer: OptimizerConfig = field(default_factory=_rl_optimizer)
    engine: EngineConfig = field(default_factory=EngineConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    benchmarks: BenchmarksConfig = field(default_factory=_some_questions)
    theater: TheaterConfig = field(default_factory=TheaterConfig)
    rollback: RollbackConfig = field(default_factory=RollbackConfig)
    adapter: Literal["none", "lora"] = "none"
    lora: LoraSettings = field(default_factory=LoraSettings)
    # The loss of a policy gradient has no level of its own that a spike could stand out from.
    guard: GuardConfig = field(default_factory=lambda: GuardConfig(spike_nats=0.0))

    def __post_init__(self) -> None:
        require_in("[0, inf]", checkpoint_every=self.checkpoint_every)
        require_choice("adapter", self.adapter, ("none", "lora"))
        if self.adapter == "lora" and self.engine.zero_stage == 3:
            raise InputError(
                "adapter is 'lora' with engine.zero_stage 3, which takes the frozen weights apart "
                "as well; set a stage of 0 to 2"
            )
        if self.episodes.thoughts < 2 and self.objective.baseline != "ema":
            raise InputError(
                f"episodes.thoughts is {self.episodes.thoughts} and objective.baseline "
                f"{self.objective.baseline!r}, which compares the thoughts of a group; take at "
                "least 2 thoughts, or the baseline 'ema'"
            )
        made = self.rollback.changes[: self.rollback.retries] if self.rollback.every_steps else ()
        if "kl" in made and not self.optimizer.muon_grokfast.kl_coefficient:
            raise InputError(
                "kl_coefficient is 0, so a rollback that doubles it changes nothing; leave 'kl' "
                "out of rollback.changes, or set a coefficient"
            )
