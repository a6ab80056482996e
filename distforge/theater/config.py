"""What the verdict asks, and when it is sure."""

from __future__ import annotations

from dataclasses import dataclass

from distforge.errors import InputError, require_in

ALWAYS_WRITTEN = 4
"""Thoughts written at every place; more only where these differ."""
STRICT_CORRELATION = 0.5
"""The specification's threshold; see `TheaterConfig.strict`."""


@dataclass(frozen=True)
class TheaterConfig:
    """The three tests of the verdict.

    divergence: threshold of both divergences, fractions.
    ablation: by which the accuracy with own thoughts must exceed the best control's, a fraction.
    correlation: threshold of the rank correlation of coherence with gain. Models whose
        thoughts do all the work by construction do not reach the specification's 0.5 (see
        benchmarks/README.md); this threshold separates them from those whose thoughts do none.
    strict: require the specification's correlation of 0.5 instead.
    thoughts: written at a place, at least 4; where the first four are one and the same, no more
        are, since they would say the same.
    alpha: two-sided, of the whole verdict: over its tests (Holm) and all looks at a run.
    bootstrap: resamples of the documents.
    batch_size: items at once.
    seed: of sampling, substitutes and bootstrap.
    """

    divergence: float = 0.30
    ablation: float = 0.02
    correlation: float = 0.1
    strict: bool = False
    thoughts: int = 8
    alpha: float = 0.05
    bootstrap: int = 10_000
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        require_in("[0, 1]", divergence=self.divergence, ablation=self.ablation)
        require_in("[-1, 1]", correlation=self.correlation)
        require_in("(0, 1)", alpha=self.alpha)
        require_in("[2, inf]", batch_size=self.batch_size)
        require_in("[1000, inf]", bootstrap=self.bootstrap)
        if self.thoughts < ALWAYS_WRITTEN:
            raise InputError(
                f"thoughts is {self.thoughts}; a verdict needs at least {ALWAYS_WRITTEN} a place"
            )

    @property
    def thresholds(self) -> dict[str, float]:
        """By measure."""
        return {
            "divergence_edit": self.divergence,
            "divergence_prediction": self.divergence,
            "ablation": self.ablation,
            "correlation": STRICT_CORRELATION if self.strict else self.correlation,
        }
