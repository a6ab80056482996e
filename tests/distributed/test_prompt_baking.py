"""Prompt baking on ranks and ZeRO stages: the same bake as in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distforge.baking import PromptBaker
from distforge.baking.prompt.delta import weights_sha256
from distforge.baking.prompt.prompt_config import PromptBakingConfig
from distforge.training.distributed import World
from distforge.training.engine_config import EngineConfig
from tests.baking_cases import CONTEXT, MODELS, PROMPT, config, examples, model, tokenizer
from tests.distributed.harness import run_ranks

# float32 sums in another order, through 12 steps of AdamW; measured 1e-6.
RELATIVE = 1e-4
STEPS = 12


def settings(**changes: object) -> PromptBakingConfig:
    from dataclasses import replace

    # Greedy responses: what is sampled depends on how many ranks share the sampling.
    small = config(temperature=1e-4, evaluate_every=6)
    return replace(small, training=replace(small.training, max_steps=STEPS), **changes)


def bake(world: World, weights: Path, stage: int, backend: str, changes: dict):
    champion = MODELS["llama"](len(tokenizer()), max_positions=CONTEXT)
    champion.load_state_dict(torch.load(weights, weights_only=True))
    before = weights_sha256(champion)
    engine = EngineConfig(backend=backend, zero_stage=stage, dtype="float32", qk_clip_every=0)
    baker = PromptBaker(
        champion,
        tokenizer(),
        config=settings(engine=engine, **changes),
        examples=examples(),
        world=world,
    )
    baked = baker.bake(PROMPT)
    assert weights_sha256(champion) == before
    merged = {name: p.detach().clone() for name, p in baked.model.named_parameters()}
    return baked.outcome.curve, merged


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("champion") / "weights.pt"
    torch.save(model().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def alone(champion: Path):
    return run_ranks(1, bake, champion, 0, "plain", {})[0]


@pytest.mark.parametrize("size,stage", [(1, 2), (2, 0), (2, 2), (2, 3)])
def test_ranks_and_stages_bake_the_same_model(champion: Path, alone, size: int, stage: int) -> None:
    curve, weights = alone
    assert curve[0][1] > 4 * curve[-1][1]
    for theirs, merged in run_ranks(size, bake, champion, stage, "deepspeed", {}):
        assert [step for step, _ in theirs] == [step for step, _ in curve]
        assert [kl for _, kl in theirs] == pytest.approx([kl for _, kl in curve], rel=1e-2)
        gap = sum(((merged[n] - weights[n]).double() ** 2).sum() for n in weights)
        size_ = sum((weights[n].double() ** 2).sum() for n in weights)
        assert float((gap / size_) ** 0.5) <= RELATIVE


@pytest.mark.parametrize(
    "changes",
    [{"method": "full"}, pytest.param({"on_policy": 1.0}, marks=pytest.mark.nightly), {"top_k": 8}],
    ids=str,
)
def test_every_way_runs_sharded(champion: Path, changes: dict) -> None:
    outcomes = run_ranks(2, bake, champion, 3, "deepspeed", changes)
    (curve, merged), (other_curve, other) = outcomes
    assert curve == other_curve
    assert curve[0][1] > 2 * curve[-1][1]
    assert all(torch.equal(merged[name], other[name]) for name in merged)
