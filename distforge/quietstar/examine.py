"""A model on held-out items: with its thoughts, without them, and with other things instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from distforge.errors import InputError
from distforge.evaluation.scoring import Answered, answer_questions
from distforge.quietstar.config import LearnerConfig
from distforge.quietstar.inputs import Step2Inputs
from distforge.quietstar.items import ThoughtItem, placed, source_of
from distforge.quietstar.language_model import language_model
from distforge.quietstar.probes import CONTROLS, Condition, ProbeResult, ThoughtProbe
from distforge.quietstar.step2_config import Step2Config
from distforge.quietstar.tags import Tags
from distforge.training.distributed import World

# Room beyond the longest thought and answer of the data, for a model that is more verbose.
_SPARE_TOKENS = 16


@dataclass(frozen=True)
class Examined:
    """What an examination found, over the held-out items in order.

    results: by condition, "own" and the controls. answered: of questions, free greedy generations
    judged by the checker; empty for free text. sources: of each place, the question or the document
    that it is in: places of one are not independent.
    """

    results: dict[Condition, ProbeResult]
    answered: list[Answered]
    sources: list[str]


class Examiner:
    """Examines models on the same items; every call is collective.

    Made while the baked model of ``inputs`` is still that, and whole.
    """

    def __init__(self, config: Step2Config, inputs: Step2Inputs, world: World) -> None:
        self._config, self._inputs, self._world = config, inputs, world
        self._tags = Tags.from_tokenizer(inputs.baked.tokenizer)
        # Free text is thought about at the same places by both models: where the baked one is
        # unsure, if it is uncertainty that decides.
        self._items = placed(inputs.heldout, inputs.baked.model, config.positions, self._tags)
        asked = {item.id for item in inputs.heldout}
        self._questions = [e for e in inputs.examples if e.id in asked]
        longest = max(len(i.gold or ()) + len(i.targets[0]) for i in self._items if i.targets)
        self._room = longest + 2 + _SPARE_TOKENS

    def __call__(self, model: nn.Module) -> Examined:
        """Examine a model whose weights are whole on this process."""
        probe = ThoughtProbe(
            model,
            self._items,
            self._tags,
            self._config.thought,
            self._config.probe.batch_size,
        )
        conditions: tuple[Condition, ...] = ("own", *CONTROLS)
        answered: list[Answered] = []
        if self._questions:
            answered = answer_questions(
                language_model(model),
                self._inputs.baked.tokenizer,
                self._questions,
                self._world,
                max_new_tokens=self._room,
                batch_size=self._config.probe.batch_size,
            )
        return Examined(
            results={condition: probe.ask(condition) for condition in conditions},
            answered=answered,
            sources=[source_of(item) for item in self._items for _ in item.positions],
        )


def require_baked(
    model: nn.Module, items: Sequence[ThoughtItem], config: LearnerConfig, tags: Tags
) -> None:
    """Refuse a model that answers too few questions with sampled thoughts.

    Args:
        items: the probed ones.

    Raises:
        InputError: fewer than ``config.probe.min_sampled_accuracy`` of them are answered.
    """
    wanted = config.probe.min_sampled_accuracy
    probe = ThoughtProbe(model, items, tags, config.thought, config.probe.batch_size)
    sampled = float(probe.ask("sampled").hits.float().mean())
    if sampled < wanted:
        raise InputError(
            f"the baked model answers {sampled:.1%} of the probed items with sampled thoughts, "
            f"below probe.min_sampled_accuracy ({wanted:.0%}); bake it further first: from less, "
            "reinforcement learning makes small models worse"
        )
