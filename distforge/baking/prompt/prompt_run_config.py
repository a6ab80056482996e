"""The configuration of ``distforge bake-prompt``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from distforge.baking.prompt.delta import check_strength
from distforge.baking.prompt.prompt_config import PromptBakingConfig
from distforge.data import DataConfig
from distforge.errors import InputError, require_choice
from distforge.models.storage import LoadDtype
from distforge.registry import RegistryConfig
from distforge.telemetry import TelemetryConfig
from distforge.training.run_directory import Existing, PlacedRun, Resume

# What may differ between two runs that are still the same run.
NOT_IDENTITY = (
    *("output", "name", "existing", "resume", "telemetry", "registry"),
    *("questions", "others", "check"),
)


@dataclass(frozen=True)
class BakePromptConfig(PlacedRun):
    """Bake prompts into a model: one, one for several rounds, or several one after another.

    model: a Hugging Face directory, a run's, a .safetensors or .pt file, or ``hf://NAME``.
    prompt: files with a prompt each; several are baked in this order.
    strategy: whose questions the prompts are for; empty: the strategy whose prompt it is, or all.
    strength: how much of the bake the exported model has, in [0, 1.5].
    graded: count ``strength`` in answers: the share of those that the whole bake makes follow the
        prompt, in [0, 1], instead of the scale of the change.
    rounds: of pursuit, for one prompt.
    adapter: an earlier run's adapter directory: merged at ``strength``, without training.
    dtype: to load it in, which it is asked and, as a LoRA's frozen base, trained in. "auto" is its
        own where this machine computes in that, else float32. The adapter is float32 always.
    data: the questions; those of the built-in tasks where none are given.
    questions: held-out questions asked in each condition of the report; 0 asks all.
    others: questions asked of each other strategy, to see what was forgotten.
    check: ``file.py:function`` that is given a question and an answer and says (True or False)
        whether the answer follows the prompt; the file is run. Empty: by layout for the seven
        strategies, by likelihood for any other prompt.
    baking: how a prompt is baked.
    """

    model: str
    prompt: tuple[Path, ...] = ()
    strategy: str = ""
    strength: float = 1.0
    graded: bool = False
    rounds: int = 1
    adapter: str = ""
    dtype: LoadDtype = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    questions: int = 100
    others: int = 20
    check: str = ""
    name: str = "prompt"
    output: str = "runs"
    existing: Existing = "resume"
    resume: Resume = "off"
    baking: PromptBakingConfig = field(default_factory=PromptBakingConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)

    def __post_init__(self) -> None:
        check_strength(self.strength, self.graded)
        require_choice("dtype", self.dtype, get_args(LoadDtype))
        require_choice("existing", self.existing, get_args(Existing))
        require_choice("resume", self.resume, get_args(Resume))
        if self.questions < 0 or self.others < 0 or self.rounds < 1:
            raise InputError(
                f"questions is {self.questions}, others {self.others} and rounds {self.rounds}; "
                "expected 0 or more, and at least one round"
            )

    def require_consistent(self) -> None:
        """What a file of settings may leave to the command line, so it is looked at here."""
        if bool(self.prompt) == bool(self.adapter):
            raise InputError(
                f"{len(self.prompt)} prompt files and the adapter {self.adapter!r} are given; "
                "expected prompt files to bake, or an adapter to merge"
            )
        if self.rounds > 1 and len(self.prompt) != 1:
            raise InputError(
                f"rounds is {self.rounds} for {len(self.prompt)} prompts; pursuit takes one"
            )
