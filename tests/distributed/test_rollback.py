"""Two ranks under ZeRO go back together, bit for bit, and go on as ranks that resume there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from distforge.handoff.verdict import PASS, THEATRE
from distforge.quietstar.rollback import Rollback
from distforge.training.distributed import World
from distforge.training.engine_config import EngineConfig
from tests.distributed.harness import run_ranks
from tests.judging_cases import ScriptedJudge, judged_config
from tests.thinking_cases import make_trainer
from tests.tiers import grid

SCRIPT = [PASS, THEATRE, THEATRE]


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    with trainer.engine.whole_model() as model:
        return {name: value.detach().clone() for name, value in model.state_dict().items()}


def go_back_and_on(world: World, directory: Path, engine: EngineConfig) -> dict[str, Any]:
    config = judged_config(engine=engine)
    trainer = make_trainer(directory, config, world, judge=ScriptedJudge(SCRIPT))
    found: dict[str, Any] = {}
    pin, go_back = trainer._keeper.pin, trainer._keeper.go_back

    def note_pin() -> None:
        if trainer._keeper.step == 1:
            found["passed"] = weights(trainer)
        pin()

    def note_back() -> None:
        found["left"] = weights(trainer)
        go_back()
        found["restored"] = weights(trainer)
        if world.is_main:
            shutil.copytree(directory, directory.with_name("copy"))
        world.barrier()

    trainer._keeper.pin, trainer._keeper.go_back = note_pin, note_back
    outcome = trainer.train()
    found |= {"outcome": outcome, "end": weights(trainer)}
    other = make_trainer(directory.with_name("copy"), config, world, judge=ScriptedJudge(SCRIPT))
    found |= {"resumed": other.train(), "resumed_end": weights(other)}
    return found


@pytest.mark.parametrize(
    "stage, name",
    grid([0, 1, 2, 3], ["adamw", "muon_grokfast"], day=lambda s, n: (s, n) == (2, "adamw")),
)
def test_two_ranks(tmp_path: Path, stage: int, name: str) -> None:
    engine = EngineConfig(dtype="float32", qk_clip_every=0, zero_stage=stage, backend="deepspeed")
    found = run_ranks(2, go_back_and_on, tmp_path / "run", engine)
    for of_rank in found:
        assert of_rank["outcome"].rollbacks == (Rollback(3, 1, 1, "kl"),)
        assert of_rank["resumed"].rollbacks == of_rank["outcome"].rollbacks
        for one, other in (("passed", "restored"), ("end", "resumed_end")):
            pairs = of_rank[one], of_rank[other]
            assert [k for k in pairs[0] if not torch.equal(pairs[0][k], pairs[1][k])] == []
        assert any(
            not torch.equal(of_rank["left"][k], of_rank["restored"][k]) for k in of_rank["left"]
        )
        assert all(torch.equal(of_rank["end"][k], found[0]["end"][k]) for k in found[0]["end"])
