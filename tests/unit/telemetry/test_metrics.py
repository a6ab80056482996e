"""The schema of metric names."""

import ast
from pathlib import Path

import pytest

import distforge
from distforge.data.strategies import STRATEGIES, USAGE_TYPES
from distforge.telemetry import BakingMetrics, metrics
from distforge.telemetry.metrics import BAKING_METRICS, RL_METRICS, RLMetrics

SPECIFIED = [
    "baking/epoch",
    "baking/loss",
    "baking/learning_rate",
    "baking/accuracy_overall",
    "baking/accuracy_chain_of_thought",
    "baking/accuracy_mece_decomposition",
    "baking/accuracy_falsification_testing",
    "baking/accuracy_expert_perspective",
    "baking/accuracy_orthogonal_wisdom",
    "baking/accuracy_self_doubt",
    "baking/accuracy_bayesian_rationalist",
    "baking/token_usage_thinking",
    "baking/token_usage_step",
    "baking/token_usage_mece",
    "baking/token_usage_falsify",
    "baking/token_usage_doubt",
    "baking/convergence_progress",
]


SPECIFIED_RL = [
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
]


def make_metrics(first: float = 1.0) -> tuple[BakingMetrics, dict[str, float]]:
    """Metrics with 17 different values, and those values by name, spelled out once more."""
    values = [first + i / 64 for i in range(17)]
    metrics = BakingMetrics(
        epoch=values[0],
        loss=values[1],
        learning_rate=values[2],
        accuracy_overall=values[3],
        accuracy=dict(zip(STRATEGIES, values[4:11], strict=True)),
        token_usage=dict(zip(USAGE_TYPES, values[11:16], strict=True)),
        convergence_progress=values[16],
    )
    return metrics, dict(zip(SPECIFIED, values, strict=True))


def make_rl_metrics(first: float = 1.0) -> tuple[RLMetrics, dict[str, float]]:
    """The same for reinforcement learning."""
    values = {name: first + i / 64 for i, name in enumerate(SPECIFIED_RL)}
    return RLMetrics(**values), {f"rl/{name}": value for name, value in values.items()}


def test_the_seventeen_are_the_specified_ones() -> None:
    metrics, expected = make_metrics()
    assert list(metrics.as_dict()) == SPECIFIED == list(BAKING_METRICS)
    assert metrics.as_dict() == expected


def test_a_missing_or_unknown_key_is_refused() -> None:
    metrics, _ = make_metrics()
    rest = {"epoch": 1, "loss": 1, "learning_rate": 1, "accuracy_overall": 1}
    six = dict.fromkeys(STRATEGIES[1:], 1.0)
    with pytest.raises(ValueError, match="accuracy has the keys"):
        BakingMetrics(**rest, accuracy=six, token_usage=metrics.token_usage, convergence_progress=1)
    with pytest.raises(ValueError, match="token_usage has the keys"):
        BakingMetrics(
            **rest,
            accuracy=metrics.accuracy,
            token_usage={**metrics.token_usage, "expert": 1.0},
            convergence_progress=1,
        )


def test_the_other_seventeen_are_the_specified_ones() -> None:
    metrics, expected = make_rl_metrics()
    assert len(expected) == 17
    assert metrics.as_dict() == expected
    assert tuple(metrics.as_dict()) == RL_METRICS


def test_nothing_else_spells_a_metric_key() -> None:
    keys = {*BAKING_METRICS, *RL_METRICS, *metrics.RL_ACCURACY.values()}
    keys |= {value for value in vars(metrics).values() if isinstance(value, str) and "/" in value}
    assert {metrics.TRAIN_LOSS, metrics.RL_ENTROPY, metrics.PROMPT_HELDOUT_KL} <= keys
    package = Path(distforge.__file__).parent
    offenders = [
        f"{path.relative_to(package)}:{node.lineno} {node.value}"
        for path in package.rglob("*.py")
        if path != package / "telemetry" / "metrics.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and node.value in keys
    ]
    assert offenders == []
