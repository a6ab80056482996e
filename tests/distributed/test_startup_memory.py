"""What a rank holds while a run starts: at ZeRO 3 never a copy of the whole float32 model."""

from __future__ import annotations

from pathlib import Path

from distforge.models.architectures import ArchitectureConfig, build_model
from distforge.models.export import export_model
from distforge.models.loading import load_champion
from distforge.training import engine
from distforge.training.backends import DeepSpeedBackend
from distforge.training.distributed import World
from tests.distributed.harness import run_ranks
from tests.tiny_models import tiny_tokenizer
from tests.training_cases import engine_config, make_engine

# 155 MB: what else is touched for the first time, 20 to 40 MB, is small beside it.
SHAPE = ArchitectureConfig(
    hidden_size=1024, num_layers=3, num_heads=8, num_kv_heads=8, intermediate_size=2816
)


def anonymous() -> int:
    """Bytes of this process that are backed by no file; freed ones stay, see `host_memory`."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no RssAnon")


def taken_by_loading(_: World, directory: str) -> int:
    before = anonymous()
    champion = load_champion(directory)
    taken = anonymous() - before
    assert champion.model.num_parameters()
    return taken


def test_a_float32_champion_stays_in_its_file(tmp_path: Path) -> None:
    """Its tensors are the file, mapped. Measured: 0.14 to 0.25 of the model; a copy is 1.14."""
    tokenizer = tiny_tokenizer()
    model = build_model(SHAPE, len(tokenizer), 0, eos_token_id=1, pad_token_id=0)
    export_model(model, tokenizer, tmp_path / "model")
    (taken,) = run_ranks(1, taken_by_loading, str(tmp_path / "model"))
    assert taken < 0.5 * 4 * model.num_parameters()


def whole_before_deepspeed(world: World, stage: int) -> int:
    """Elements of all weights on a rank when DeepSpeed's engine, which moves them, is made."""
    seen = []

    class Watched(DeepSpeedBackend):
        def __init__(self, model, *rest) -> None:
            seen.append(sum(parameter.numel() for parameter in model.parameters()))
            super().__init__(model, *rest)

    engine.DeepSpeedBackend = Watched
    make_engine(world, engine_config(zero_stage=stage))
    return seen[0]


def test_weights_are_sharded_before_any_device_has_all_of_them() -> None:
    assert run_ranks(2, whole_before_deepspeed, 2)[1] > 0
    assert run_ranks(2, whole_before_deepspeed, 3) == [0, 0]
