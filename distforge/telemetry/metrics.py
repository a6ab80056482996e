"""The one schema of metric names; nothing else spells a metric key.

Names are ``group/name``. Fractions (accuracies, token usage, progress) lie in [0, 1]. A value
that could not be measured, such as a strategy absent from the data, is NaN: never zero, never
left out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from distforge.data.strategies import STRATEGIES, USAGE_TYPES

# A step of training.
TRAIN_LOSS = "train/loss"
TRAIN_TOKEN_ACCURACY = "train/token_accuracy"
TRAIN_LEARNING_RATE = "train/learning_rate"
TRAIN_GRAD_NORM = "train/grad_norm"
TRAIN_TOKENS_PER_SECOND = "train/tokens_per_second"
TRAIN_EPOCH = "train/epoch"
TRAIN_SKIPPED_STEPS = "train/skipped_steps"
# With every record after a rollback, when the steps that are logged go on counting.
TRAIN_STEP = "train/step"
TRAIN_BRANCH = "train/branch"

# The optimizer, on the steps that it is sampled.
OPTIMIZER_UPDATE_RMS = "optimizer/update_rms"
OPTIMIZER_GRAD_EMA_COSINE = "optimizer/grad_ema_cosine"
OPTIMIZER_NS_RESIDUAL = "optimizer/ns_residual"
OPTIMIZER_CLIPPED_HEADS = "optimizer/clipped_heads"

# Prompt baking: KL(prompted teacher ‖ model without the prompt), nats a held-out response token.
PROMPT_HELDOUT_KL = "prompt/heldout_kl"

# Reinforcement learning, beside its 17: nats a thought token, nats a thought, fractions. The gap is
# between the log-probabilities that the engine drew with and those that the learner computes.
RL_ENTROPY = "rl_detail/entropy"
RL_ANSWER_NLL = "rl_detail/answer_nll"
RL_GAP = "rl_detail/log_prob_gap"
RL_MAX_GAP = "rl_detail/log_prob_gap_max"
RL_REWARD_STD = "rl_detail/reward_std"
# Shares: of answers that the model ended itself, of groups that hold two different rewards. Then
# the mean of each reward function, the rest of the name, and the mean reward of held-out answers.
RL_FINISHED = "rl_detail/finished"
RL_TOLD_APART = "rl_detail/groups_told_apart"
RL_REWARD_PART = "rl_detail/reward_of_"
RL_HELDOUT_REWARD = "rl_detail/heldout_reward"
# A table, to W&B alone.
RL_COMPLETIONS = "rl_detail/completions"
RL_STALENESS = "rl_detail/staleness"
RL_ROLLOUT_SECONDS = "rl_detail/rollout_seconds"
# Tokens a second: that an engine writes, and that the learner learns from. The share of a step that
# the learner waits for rollouts and their rewards.
RL_ENGINE_SPEED = "rl_detail/engine_tokens_per_second"
RL_LEARNER_SPEED = "rl_detail/learner_tokens_per_second"
RL_WAITED = "rl_detail/waited_time_share"
RL_ACCURACY = {
    condition: f"rl_detail/accuracy_{condition}"
    for condition in ("own", "sampled", "shuffled", "random", "filler", "none", "gold")
}
# 95% bounds of the benchmarks, which are asked on a sample; of the verdict's measures, at the level
# of the look.
RL_BENCHMARK_BOUNDS = {
    name: (f"rl_detail/{name}_accuracy_low", f"rl_detail/{name}_accuracy_high")
    for name in ("gsm8k", "arc")
}
RL_VERDICT_BOUNDS = {
    name: (f"rl_detail/{name}_low", f"rl_detail/{name}_high")
    for name in ("divergence_edit", "divergence_prediction", "ablation", "correlation")
}
RL_BITS_WITH_THOUGHTS = "rl_detail/bits_per_token_with_thoughts"
RL_BITS_WITHOUT = "rl_detail/bits_per_token_without"
# The verdict on the thoughts: 1 for PASS, 0 for INCONCLUSIVE, -1 for THEATRE; and where the run was
# rolled back, to which optimizer step.
RL_VERDICT = "rl_detail/verdict"
RL_ROLLED_BACK_TO = "rl_detail/rolled_back_to"

# The 17 of baking: one record an epoch.
BAKING_EPOCH = "baking/epoch"
BAKING_LOSS = "baking/loss"
BAKING_LEARNING_RATE = "baking/learning_rate"
BAKING_ACCURACY_OVERALL = "baking/accuracy_overall"
BAKING_ACCURACY = {strategy: f"baking/accuracy_{strategy}" for strategy in STRATEGIES}
BAKING_TOKEN_USAGE = {usage: f"baking/token_usage_{usage}" for usage in USAGE_TYPES}
BAKING_CONVERGENCE_PROGRESS = "baking/convergence_progress"

BAKING_METRICS = (
    BAKING_EPOCH,
    BAKING_LOSS,
    BAKING_LEARNING_RATE,
    BAKING_ACCURACY_OVERALL,
    *BAKING_ACCURACY.values(),
    *BAKING_TOKEN_USAGE.values(),
    BAKING_CONVERGENCE_PROGRESS,
)


@dataclass(frozen=True)
class BakingMetrics:
    """What step 1 reports after an epoch.

    Attributes:
        epoch: epochs of training done; fractional when an evaluation falls inside one.
        loss: mean training loss in nats a response token.
        learning_rate: of the hidden matrices' group, at this step.
        accuracy_overall: fraction of held-out questions answered rightly in free generation.
        accuracy: the same by strategy; exactly the seven of ``STRATEGIES``.
        token_usage: fraction of free generations that use the token; exactly ``USAGE_TYPES``
            (mece, falsify and doubt given their strategy).
        convergence_progress: ``accuracy_overall`` over its target, at least 0.

    Raises:
        ValueError: a strategy or usage type is missing or unknown.
    """

    epoch: float
    loss: float
    learning_rate: float
    accuracy_overall: float
    accuracy: Mapping[str, float]
    token_usage: Mapping[str, float]
    convergence_progress: float

    def __post_init__(self) -> None:
        for name, given, wanted in (
            ("accuracy", self.accuracy, STRATEGIES),
            ("token_usage", self.token_usage, USAGE_TYPES),
        ):
            if set(given) != set(wanted):
                raise ValueError(
                    f"{name} has the keys {sorted(given)}, expected exactly {sorted(wanted)}; "
                    "give NaN for what was not measured"
                )

    def as_dict(self) -> dict[str, float]:
        """The 17 metrics by full name, in the order of ``BAKING_METRICS``."""
        return {
            BAKING_EPOCH: self.epoch,
            BAKING_LOSS: self.loss,
            BAKING_LEARNING_RATE: self.learning_rate,
            BAKING_ACCURACY_OVERALL: self.accuracy_overall,
            **{key: self.accuracy[name] for name, key in BAKING_ACCURACY.items()},
            **{key: self.token_usage[name] for name, key in BAKING_TOKEN_USAGE.items()},
            BAKING_CONVERGENCE_PROGRESS: self.convergence_progress,
        }


RL_METRIC_NAMES = (
    "episode",
    "reward",
    "avg_reward",
    "coherence_semantic",
    "coherence_syntactic",
    "coherence_predictive",
    "coherence_composite",
    "thought_length",
    "thought_diversity",
    "kl_divergence",
    "gsm8k_accuracy",
    "arc_accuracy",
    "inference_time_ms",
    "anti_theater_divergence",
    "anti_theater_ablation",
    "anti_theater_correlation",
    "ess",
)
# The 17 of reinforcement learning: one record a probe; what a step knows, at every step.
RL = {name: f"rl/{name}" for name in RL_METRIC_NAMES}
RL_METRICS = tuple(RL.values())


@dataclass(frozen=True)
class RLMetrics:
    """What step 2 reports at a probe of the thoughts; NaN for what was not measured.

    Attributes:
        episode: episodes of training done.
        reward: mean of the last step's thoughts; avg_reward: mean over the last 100 episodes.
        coherence_semantic, coherence_syntactic, coherence_predictive, coherence_composite: in
            [0, 1], see ``theater.coherence``.
        thought_length: mean tokens of the last step's thoughts.
        thought_diversity: of the thoughts at one place, in [0, 1], see ``theater.coherence``.
        kl_divergence: from the baked model, nats a thought token.
        gsm8k_accuracy, arc_accuracy: fractions, where those benchmarks are evaluated.
        inference_time_ms: to think about and answer one held-out item, in a batch.
        anti_theater_divergence: normalised edit distance between a thought and what the model
            would have gone on with instead, in [0, 1].
        anti_theater_ablation: accuracy with the own thoughts less the best control's.
        anti_theater_correlation: Spearman's, of the coherence of a thought's content with what it
            gains, among the thoughts of one place, averaged over places; in [-1, 1].
        ess: effective sample size of the last step's thoughts, a fraction.
    """

    episode: float
    reward: float
    avg_reward: float
    thought_length: float
    kl_divergence: float
    ess: float
    coherence_semantic: float = math.nan
    coherence_syntactic: float = math.nan
    coherence_predictive: float = math.nan
    coherence_composite: float = math.nan
    thought_diversity: float = math.nan
    gsm8k_accuracy: float = math.nan
    arc_accuracy: float = math.nan
    inference_time_ms: float = math.nan
    anti_theater_divergence: float = math.nan
    anti_theater_ablation: float = math.nan
    anti_theater_correlation: float = math.nan

    def as_dict(self) -> dict[str, float]:
        """The 17 metrics by full name, in the order of ``RL_METRICS``."""
        return {key: getattr(self, name) for name, key in RL.items()}
