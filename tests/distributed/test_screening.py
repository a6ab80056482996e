"""Ranks share the items that are screened, and keep the same ones."""

from pathlib import Path

from distforge.quietstar.config import ScreeningConfig
from distforge.quietstar.screening import screen
from distforge.quietstar.step2_config import Step2Config
from distforge.telemetry import RunLogger
from distforge.thinking.tags import Tags
from distforge.training.distributed import World
from tests.distributed.harness import run_ranks
from tests.thinking_cases import SILENT, learner_config, opinionated_pair, question_like_items

# Of nine items, the model is surer of some.
SURE = 0.2


def kept(world: World, directory: Path) -> list[str]:
    model, tokenizer = opinionated_pair()
    log = RunLogger(directory, SILENT, {}, "screening", enabled=False)
    found = screen(
        model,
        question_like_items(9),
        Step2Config(thought=learner_config().thought, screening=ScreeningConfig(9, sure=SURE)),
        Tags.from_tokenizer(tokenizer),
        world,
        log,
        directory / f"screened_by_{world.size}.json",
    )
    return [item.id for item in found]


def test_two_ranks_keep_what_one_keeps(tmp_path):
    alone = run_ranks(1, kept, tmp_path)[0]
    assert 0 < len(alone) < 9
    assert run_ranks(2, kept, tmp_path) == [alone, alone]
