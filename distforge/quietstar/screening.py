"""Which questions are worth learning from: those whose thought the baked model is unsure of.

Where a model is sure of what it thinks, all thoughts of a group are alike, no reward stands out and
nothing is learned; a model that was baked well is sure of nearly everything.

Whether the answer was right is not asked. Questions that are answered wrongly are those where the
model's belief happened to be wrong: learning from them teaches it the opposite of what it believes,
also where it believes rightly, and what it wins on them it loses on all others (measured in
benchmarks/README.md). Its doubt is known before the answer is, so this choice favours no outcome.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from distforge import durable
from distforge.errors import InputError
from distforge.quietstar.step2_config import Step2Config
from distforge.telemetry import RunLogger
from distforge.thinking.items import ThoughtItem, grouped, pad_texts
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import sample_thoughts
from distforge.training.distributed import World

# Between two signs of life.
_PORTION = 1024


def screen(
    model: nn.Module,
    items: Sequence[ThoughtItem],
    config: Step2Config,
    tags: Tags,
    world: World,
    log: RunLogger,
    path: Path,
) -> list[ThoughtItem]:
    """Those of the first items that ``model`` is unsure of; collective.

    Which, is kept in ``path``, so that a resumed run learns from the same ones without asking a
    model that may have changed.

    Args:
        model: the baked model, whole on every rank; ranks share the items, questions with one
            place to think.
        config: how it thinks, how many items at once, and how sure is sure.

    Raises:
        InputError: the model is sure of all of them.
    """
    if not config.screening.items:
        return list(items)
    tried = items[: config.screening.items]
    kept = (
        json.loads(path.read_text(encoding="utf-8")) if world.is_main and path.is_file() else None
    )
    kept = world.broadcast_object(kept)
    if kept is None:
        kept = sorted(_unsure(model, tried, config, tags, world, log))
        if not kept:
            raise InputError(
                f"the baked model is sure of all {len(tried)} screened items: there is nothing to "
                "learn from them; raise screening.items or screening.sure, or give harder data"
            )
        if world.is_main:
            durable.write_json(path, kept, indent=None)
    wanted = set(kept)
    return [item for item in tried if item.id in wanted]


def _unsure(
    model: nn.Module,
    items: Sequence[ThoughtItem],
    config: Step2Config,
    tags: Tags,
    world: World,
    log: RunLogger,
) -> set[str]:
    """Ids of the items whose greedy thought has less than the probability that is sure."""
    least, batch = math.log(config.screening.sure), config.probe.batch_size
    unsure: set[str] = set()
    for start in range(0, len(items), _PORTION):
        mine = items[start + world.rank : start + _PORTION : world.size]
        found = [
            item.id
            for first in range(0, len(mine), batch)
            for item, certainty in _certainties(model, mine[first : first + batch], config, tags)
            if certainty < least
        ]
        unsure.update(name for part in world.gather_objects(found) for name in part)
        done = min(start + _PORTION, len(items))
        log.say(f"screening: unsure of {len(unsure)} of {done} items, {len(items)} to try")
    return unsure


def _certainties(
    model: nn.Module, items: Sequence[ThoughtItem], config: Step2Config, tags: Tags
) -> list[tuple[ThoughtItem, float]]:
    """The items, each with the log-probability of its greedy thought in nats."""
    ids, mask = pad_texts(items, tags.pad)
    rows, positions, _ = grouped(items, 1)
    greedy = replace(config.thought, greedy=True)
    thoughts = sample_thoughts(model, ids, mask, rows, positions, tags, greedy)
    return list(zip(items, thoughts.log_probs.sum(dim=1).tolist(), strict=True))
