"""Which questions are worth learning from: those that the baked model gets wrong.

Where all thoughts of a group are right, no reward stands out and nothing is learned; a model that
was baked well answers nearly all questions so. (Offline difficulty filtering, as in Kimi k1.5,
arXiv 2501.12599.)
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from distforge.errors import InputError
from distforge.quietstar.items import ThoughtItem
from distforge.quietstar.probes import ThoughtProbe
from distforge.quietstar.step2_config import Step2Config
from distforge.quietstar.tags import Tags
from distforge.telemetry import RunLogger
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
    """Those of the first items that ``model`` gets wrong, and some of the others; collective.

    Which, is kept in ``path``, so that a resumed run learns from the same ones without asking a
    model that may have changed.

    Args:
        model: the baked model, whole on every rank; ranks share the items, questions with one
            place to think.
        config: how it thinks, how many items at once, and the seed of which right ones are kept.

    Raises:
        InputError: the model gets all of them right.
    """
    if not config.screening.items:
        return list(items)
    tried = items[: config.screening.items]
    kept = json.loads(path.read_text()) if world.is_main and path.is_file() else None
    kept = world.broadcast_object(kept)
    if kept is None:
        wrong = _wrong(model, tried, config, tags, world, log)
        kept = _chosen(tried, wrong, config.screening.right, config.episodes.seed)
        log.say(
            f"screening: learning from {len(kept)} items, {len(wrong)} of them answered wrongly"
        )
        if world.is_main:
            path.write_text(json.dumps(kept))
    wanted = set(kept)
    return [item for item in tried if item.id in wanted]


def _wrong(
    model: nn.Module,
    items: Sequence[ThoughtItem],
    config: Step2Config,
    tags: Tags,
    world: World,
    log: RunLogger,
) -> set[str]:
    """Ids of the items that are answered wrongly."""
    wrong: set[str] = set()
    for start in range(0, len(items), _PORTION):
        mine = items[start + world.rank : start + _PORTION : world.size]
        missed: list[str] = []
        if mine:
            probe = ThoughtProbe(model, mine, tags, config.thought, config.probe.batch_size)
            hits = probe.ask("own").hits.tolist()
            missed = [item.id for item, hit in zip(mine, hits, strict=True) if not hit]
        wrong.update(name for part in world.gather_objects(missed) for name in part)
        done = min(start + _PORTION, len(items))
        log.say(f"screening: {len(wrong)} of {done} items answered wrongly, {len(items)} to try")
    return wrong


def _chosen(items: Sequence[ThoughtItem], wrong: set[str], right: float, seed: int) -> list[str]:
    if not wrong:
        raise InputError(
            f"the baked model answers all {len(items)} screened items rightly: there is nothing to "
            "learn from them; raise screening.items, or give harder data"
        )
    known = [item.id for item in items if item.id not in wrong]
    count = min(len(known), round(len(wrong) * right / (1 - right)))
    return sorted(wrong) + random.Random(f"{seed}:screening").sample(known, count)
