"""The seven reasoning strategies and the eight thinking tokens: names, prompts, usage targets."""

from __future__ import annotations

from dataclasses import dataclass

from distforge.rendering.thinking_tokens import THINKING_TOKENS as THINKING_TOKENS

# Context prompts: with one of these in front of a question the champion lays its answer out in that
# strategy's form. Step 1 bakes the behaviour in, so that the question alone is enough.
STRATEGY_PROMPTS: dict[str, str] = {
    "chain_of_thought": "Strategy: think step by step and write every state.",
    "mece_decomposition": "Strategy: split into disjoint cells that cover everything.",
    "falsification_testing": "Strategy: test each hypothesis and reject what fails.",
    "expert_perspective": "Strategy: name the expert's rule and substitute.",
    "orthogonal_wisdom": "Strategy: solve it in two independent ways that must agree.",
    "self_doubt": "Strategy: draft, doubt the draft, then correct it.",
    "bayesian_rationalist": "Strategy: weigh prior times likelihood for each hypothesis.",
}

STRATEGIES: tuple[str, ...] = tuple(STRATEGY_PROMPTS)


@dataclass(frozen=True)
class UsageTarget:
    """How often free generations must use a kind of token.

    ``token`` must occur in more than ``minimum`` (a fraction in [0, 1]) of the generations; where
    ``strategy`` is set, of the generations for that strategy alone (one strategy is 1/7 of the
    data, so an unconditional 60% could not be met).
    """

    kind: str
    token: str
    minimum: float
    strategy: str | None = None


USAGE_TARGETS: tuple[UsageTarget, ...] = (
    UsageTarget("thinking", "<think>", 0.80),
    UsageTarget("step", "<step>", 0.70),
    UsageTarget("mece", "<mece>", 0.60, "mece_decomposition"),
    UsageTarget("falsify", "<falsify>", 0.60, "falsification_testing"),
    UsageTarget("doubt", "<doubt>", 0.50, "self_doubt"),
)

USAGE_TYPES: tuple[str, ...] = tuple(target.kind for target in USAGE_TARGETS)
