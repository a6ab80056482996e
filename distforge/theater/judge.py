"""Judging a model: evidence from held-out items, and the verdict on it."""

from __future__ import annotations

from collections.abc import Sequence

from distforge.errors import InputError
from distforge.theater.config import TheaterConfig
from distforge.theater.evidence import Examinee, Say, gather_evidence
from distforge.theater.measures import WANTED_ITEMS, reach_verdict
from distforge.theater.verdict import Verdict
from distforge.thinking.items import ThoughtItem
from distforge.training.distributed import World

FEWEST_SOURCES = 30
"""Independent questions or documents without which no bootstrap says anything."""
_NO_CONTROL = (
    "no model of equal compute that answers without a thought was held against it: give one with "
    "--control.path, or have one trained with --control.train"
)


def evaluate_theater(
    who: Examinee,
    items: Sequence[ThoughtItem],
    config: TheaterConfig,
    world: World,
    alpha: float | None = None,
    say: Say = lambda text: None,
) -> Verdict:
    """Whether the thoughts of a model do the work; collective over the world's ranks.

    Args:
        who: the model, and the models of equal compute that it is held against (``direct``).
            Without one of those it cannot pass: a model that was never taught to answer at once is
            no match.
        items: held out, with places and targets.
        alpha: of this look, two-sided; ``config.alpha`` where it is the only one.
        say: is told how far it is.

    Raises:
        InputError: fewer than 30 independent questions or documents.
    """
    sources = len({item.source for item in items})
    if sources < FEWEST_SOURCES:
        raise InputError(
            f"there are {sources} held-out questions or documents; no verdict can be given on "
            f"fewer than {FEWEST_SOURCES}, and a sure one takes about {WANTED_ITEMS}"
        )
    evidence = gather_evidence(who, items, config, world, say)
    missing = () if who.direct else (_NO_CONTROL,)
    return reach_verdict(evidence, config, config.alpha if alpha is None else alpha, missing)
