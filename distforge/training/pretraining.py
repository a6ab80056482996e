"""Making the embedded champion: a small model that follows strategy prompts, from nothing.

Its text pairs every strategy prompt with traces laid out that strategy's way, and questions without
a prompt with bare answers. So the model has the skills, shows them only when prompted, and leaves
step 1 something to bake. The text never contains a held-out question (see `distforge.data`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from distforge.errors import InputError
from distforge.models.architectures import ArchitectureConfig
from distforge.optim import OptimizerConfig
from distforge.training.supervised import SupervisedConfig

# Enough text for every word of every task; more changes nothing in the vocabulary.
_TOKENIZER_TEXTS = 4000


@dataclass(frozen=True)
class ChampionRecipe:
    """How the embedded champion is made.

    architecture: shape of the model.
    vocab_size: ids learned by the tokenizer, thinking tokens not counted; at least 300.
    num_examples: distinct questions in the pretraining text.
    seed: of the questions, the weights and the mixture. Step 1's data have a seed of their own.
    prompted_fraction: share written with strategy prompt and trace; the rest are bare answers.
    training, optimizer: as in step 1.
    """

    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    vocab_size: int = 600
    num_examples: int = 40_000
    seed: int = 1001
    prompted_fraction: float = 0.7
    training: SupervisedConfig = field(default_factory=SupervisedConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.prompted_fraction <= 1:
            raise InputError(
                f"prompted_fraction is {self.prompted_fraction}; expected a fraction in [0, 1]"
            )
        if self.vocab_size < 300:
            raise InputError(f"vocab_size is {self.vocab_size}; expected at least 300")
