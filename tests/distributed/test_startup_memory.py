"""What a rank holds while a run starts: at ZeRO 3 never a copy of the whole float32 model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from distforge.models.architectures import ArchitectureConfig, build_model
from distforge.models.export import export_model
from distforge.models.loading import load_champion
from distforge.optim import build_optimizer
from distforge.training import engine
from distforge.training.backends import DeepSpeedBackend
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from tests.distributed.harness import run_ranks
from tests.tiny_models import tiny_llama, tiny_tokenizer
from tests.training_cases import (
    MICRO_BATCHES,
    MUON,
    Outcome,
    engine_config,
    make_engine,
    train,
    weights,
)

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


@contextmanager
def highest(found: list[int]) -> Iterator[None]:
    """Appends the most that `anonymous` grew by meanwhile, looked at every millisecond."""
    before = peak = anonymous()
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(1e-3):
            peak = max(peak, anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
        found.append(max(peak, anonymous()) - before)


class Started(Exception):
    """Weights are sharded; DeepSpeed's engine, which takes buffers of its own, would be next."""


def started(world: World, directory: str, dtype: str) -> int:
    """What a rank holds at most until its weights are sharded, the model loaded in ``dtype``."""

    class Unmade(DeepSpeedBackend):
        def __init__(self, *_) -> None:
            raise Started

    engine.DeepSpeedBackend = Unmade
    config, found = engine_config(zero_stage=3), []
    assert config.load_dtype(world.device) == "stored"
    with highest(found):
        try:
            model = load_champion(directory, dtype).model
            TrainingEngine(model, lambda m: build_optimizer(m, MUON), config, world, 4)
        except Started:
            assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return found[0]


def test_a_champion_in_16_bits_is_sharded_without_a_whole_copy(tmp_path: Path) -> None:
    """Measured: 0.35 of the float32 model, of which a quarter is the rank's own part; 1.2 where
    each rank has all of it before."""
    tokenizer = tiny_tokenizer()
    model = build_model(SHAPE, len(tokenizer), 0, eos_token_id=1, pad_token_id=0)
    export_model(model.bfloat16(), tokenizer, tmp_path / "model")
    whole = 4 * model.num_parameters()
    for taken in run_ranks(4, started, str(tmp_path / "model"), "stored"):
        assert taken < 0.6 * whole


def trained_from(world: World, directory: str, dtype: str) -> tuple[set[torch.dtype], Outcome]:
    model = load_champion(directory, dtype).model
    loaded = {parameter.dtype for parameter in model.parameters()}
    trained = TrainingEngine(
        *(model, lambda m: build_optimizer(m, MUON), engine_config(zero_stage=3)),
        *(world, MICRO_BATCHES),
    )
    start = weights(trained)
    results = train(trained, world, range(3))
    return loaded, (results, {**start, **{f"{k}, trained": v for k, v in weights(trained).items()}})


def test_a_champion_in_16_bits_trains_as_one_that_was_whole_in_float32(tmp_path: Path) -> None:
    """Bit by bit, from the first weights on."""
    directory = str(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    export_model(tiny_llama(len(tokenizer)).bfloat16(), tokenizer, Path(directory))
    kinds, (results, ours) = run_ranks(2, trained_from, directory, "stored")[0]
    assert kinds == {torch.bfloat16, torch.float32}
    kinds, (expected, theirs) = run_ranks(2, trained_from, directory, "float32")[0]
    assert kinds == {torch.float32}
    assert results == expected
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
