"""Which engine writes, what it is made from, and what it is asked."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace

from distforge.errors import InputError
from distforge.quietstar.config import LearnerConfig
from distforge.quietstar.episode_plan import EpisodePlan
from distforge.quietstar.thought_engine import EngineRecipe
from distforge.rollouts import EngineFactory, RequestPlan, RolloutConfig, RolloutRequest
from distforge.rollouts.engines.sampling import Sampling
from distforge.rollouts.engines.vllm_engine import VllmRecipe
from distforge.thinking.items import ThoughtItem
from distforge.thinking.language_model import language_model
from distforge.thinking.model import ThinkingModel
from distforge.thinking.tags import Tags
from distforge.training.distributed import World

# vLLM takes a lower temperature for this one.
_LEAST_TEMPERATURE = 0.01
# Answers that vLLM writes at once; those above wait.
_MOST_SEQUENCES = 256


def require_engine_fits(config: LearnerConfig) -> None:
    """Refuse what the chosen engine cannot write.

    Raises:
        InputError: thoughts of their own, or a sampling, that vLLM does not have.
    """
    if config.rollouts.engine != "vllm":
        return
    if not config.reward.function:
        raise InputError(
            "rollouts.engine is 'vllm' without a reward.function, and vLLM writes no thoughts in "
            "parallel over one cache, with a mask of their own; set engine to 'hf', or name a "
            "reward.function"
        )
    if config.thought.greedy or config.thought.temperature < _LEAST_TEMPERATURE:
        raise InputError(
            "rollouts.engine is 'vllm', whose log-probabilities are those of sampling at a "
            f"temperature of at least {_LEAST_TEMPERATURE}, and thought.greedy is "
            f"{config.thought.greedy} with thought.temperature {config.thought.temperature:g}; "
            "sample at such a temperature, or set engine to 'hf'"
        )


def engine_recipe(
    model: ThinkingModel,
    tags: Tags,
    items: Sequence[ThoughtItem],
    config: LearnerConfig,
    world: World,
) -> EngineFactory:
    """What makes the engine of ``config.rollouts``, here or in an actor.

    Args:
        items: all that it may be asked.
    """
    if config.rollouts.engine == "vllm":
        require_engine_fits(config)
        return _vllm_recipe(model, tags, items, config)
    return EngineRecipe(
        copy.deepcopy(model.config),
        tags,
        config.thought,
        config.reward,
        config.positions,
        config.episodes.thoughts,
        _rollout_device(config.rollouts, world),
        config.rollouts.dtype,
    )


def request_plan(plan: EpisodePlan, tags: Tags, config: RolloutConfig) -> RequestPlan:
    """The requests of ``plan`` as the engine wants them: an interpreter that has no more than vLLM
    could not read items, so it gets their prompts."""
    if config.engine != "vllm":
        return plan

    def prompted(step: int) -> list[RolloutRequest]:
        return [
            replace(request, payload=[[*item.text, tags.open] for item in request.payload])
            for request in plan(step)
        ]

    return prompted


def _vllm_recipe(
    model: ThinkingModel, tags: Tags, items: Sequence[ThoughtItem], config: LearnerConfig
) -> VllmRecipe:
    lm, thought, thoughts = language_model(model), config.thought, config.episodes.thoughts
    described = json.loads(lm.config.to_json_string(use_diff=False))
    longest = max(len(item.text) for item in items) + 1
    return VllmRecipe(
        config=json.dumps({**described, "architectures": [type(lm).__name__]}),
        sampling=Sampling(
            group=thoughts,
            max_tokens=thought.max_tokens,
            temperature=thought.temperature,
            stop=tags.close,
            banned=tags.banned(close=False),
            pad=tags.pad,
        ),
        context=longest + thought.max_tokens,
        sequences=min(_MOST_SEQUENCES, config.episodes.request_size * thoughts),
        dtype=config.rollouts.dtype,
        gpus=config.rollouts.gpus_per_actor,
    )


def _rollout_device(config: RolloutConfig, world: World) -> str:
    """Actors compute where Ray puts them; without them the learner's process does it all."""
    if config.num_actors == 0:
        return str(world.device)
    return "cuda" if config.gpus_per_actor else "cpu"
