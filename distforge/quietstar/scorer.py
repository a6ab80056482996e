"""The no-think scorer: a slow moving average of the policy that gains are measured against.

A fixed scorer would credit thoughts with what plain training taught; the policy itself would be a
moving mark that its own cross-entropy term pulls up with the thoughts (RLP, arXiv 2510.01265).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from distforge.quietstar.thought_engine import SCORER_PREFIX

_FILE = "scorer.safetensors"


class Scorer:
    """Of the published weights: ``average <- decay * average + (1 - decay) * weights``."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._average: dict[str, Tensor] = {}
        self._version = -1

    def advance(self, weights: Mapping[str, Tensor], version: int) -> dict[str, Tensor]:
        """Take in ``weights`` of ``version``; the average, its names prefixed as engines expect.

        The first weights are the average. A version that is in it already changes nothing.
        """
        if not self._average:
            self._average = {name: value.clone() for name, value in weights.items()}
        elif version > self._version:
            for name, value in weights.items():
                if value.is_floating_point():
                    self._average[name].lerp_(value, 1 - self._decay)
        self._version = version
        return {SCORER_PREFIX + name: value for name, value in self._average.items()}

    def save(self, directory: Path) -> None:
        """Write the average into a checkpoint's directory."""
        save_file(self._average, directory / _FILE)

    def load(self, directory: Path, step: int) -> None:
        """Read what `save` wrote after ``step`` steps: the weights before the last are in it."""
        self._average = load_file(directory / _FILE)
        self._version = step - 1
