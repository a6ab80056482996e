"""What the learner of step 2 holds, by the accounting of torch's allocator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distforge.quietstar.episode_batches import EpisodeBatches
from distforge.quietstar.trainer import ThoughtTrainer
from distforge.training.distributed import World
from distforge.training.supervised import StepBatch
from tests.peak_memory import held_bytes, peak_bytes


@contextmanager
def second_step(
    trainer: ThoughtTrainer, world: World, folder: Path
) -> Iterator[tuple[EpisodeBatches, StepBatch, int, int]]:
    """Where its batches come from, the first of them, the bytes held between two steps, and what a
    step adds to them: the second, when the optimizer's buffers are there."""
    with trainer._open_pool() as pool:
        source = EpisodeBatches(
            *(trainer._plan, pool, trainer._source, trainer._advantages),
            *(trainer._config.episodes, trainer._tags, world, 1),
            *(trainer._hidden_size, trainer._scorer),
        )
        batch = next(source.steps(0))

        def step() -> None:
            trainer.engine.train_step(batch.micro_batches, 1.0, batch.targets)

        step()
        yield source, batch, held_bytes(), peak_bytes(step, folder / "t.json")
