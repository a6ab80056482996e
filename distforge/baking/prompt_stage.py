"""The first half of step 1 in mode "both": the seven strategy prompts are baked together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from distforge.baking.config import Step1Config
from distforge.baking.prompt.baked import BakedPrompt
from distforge.baking.prompt.prompt_baker import PromptBaker
from distforge.config import to_dict
from distforge.data import STRATEGY_PROMPTS, Example
from distforge.models.loading import Champion
from distforge.telemetry import RunLogger
from distforge.training.distributed import World

PROMPT_DIRECTORY = "prompt"


def bake_strategy_prompts(
    config: Step1Config,
    champion: Champion,
    examples: Sequence[Example],
    directory: Path,
    world: World,
    log: RunLogger,
) -> BakedPrompt | None:
    """Bake all strategies' prompts into a copy of the champion; None in mode "sft"; collective.

    Every question is answered by the champion with its own strategy's prompt, and one adapter
    learns them all. A run that was interrupted later finds the adapter in ``directory/prompt``.
    """
    if config.mode == "sft":
        return None
    own = directory / PROMPT_DIRECTORY
    # QK-Clip scales weights in place, which an adapter's frozen ones must not be.
    engine = dataclasses.replace(config.engine, qk_clip_every=0)
    settings = dataclasses.replace(config.prompt_baking, engine=engine)
    # The steps of this half count from 0, as those of the other do, so they have a file apart.
    telemetry = dataclasses.replace(config.telemetry, wandb_mode="disabled")
    with RunLogger(own, telemetry, to_dict(config), config.name, enabled=world.is_main) as quiet:
        baker = PromptBaker(
            champion.model,
            champion.tokenizer,
            config=settings,
            examples=examples,
            world=world,
            logger=quiet,
            directory=own,
        )
        baked = baker.bake_together({text: name for name, text in STRATEGY_PROMPTS.items()})
    log.say(
        f"baked {len(baked.prompts)} strategy prompts in {baked.seconds:.0f} s: KL "
        f"{baked.outcome.kl_before:.4f} -> {baked.outcome.kl_after:.4f} nats a token"
    )
    return baked
