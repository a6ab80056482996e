"""Judging a model: evidence from held-out items, and the verdict on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from distforge.handoff.verdict import WANTED_ITEMS, Verdict
from distforge.theater.config import TheaterConfig
from distforge.theater.evidence import Examinee, Say, gather_evidence
from distforge.theater.measures import reach_verdict, unknown_verdict
from distforge.theater.statistics import FEWEST_SOURCES
from distforge.thinking.items import ThoughtItem
from distforge.thinking.language_model import language_model
from distforge.thinking.tags import Tags, heading_ids, thinking_ids
from distforge.thinking.thoughts import ThoughtConfig
from distforge.training.distributed import World

_NO_CONTROL = (
    "no model of equal compute that answers without a thought was held against it: give one with "
    "--control.path, or have one trained with --control.tokens"
)


def examinee(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    thought: ThoughtConfig,
    *,
    reference: nn.Module | None = None,
    direct: Mapping[str, nn.Module] | None = None,
    tags: Tags | None = None,
) -> Examinee:
    """A model with its tokenizer, ready to be judged; see `Examinee`.

    Args:
        tags: between which it thinks; by default ``<think>`` and ``</think>``.

    Raises:
        InputError: the tokenizer lacks the tags.
    """
    tags = tags or Tags.from_tokenizer(tokenizer, model=language_model(model))
    return Examinee(
        model=model,
        reference=reference or model,
        tags=tags,
        thinking=tuple(sorted({tags.open, tags.close, *thinking_ids(tokenizer).values()})),
        headings=heading_ids(tokenizer),
        thought=replace(thought, greedy=False),
        direct=direct or {},
    )


def evaluate_theater(
    who: Examinee,
    items: Sequence[ThoughtItem],
    config: TheaterConfig,
    world: World,
    alpha: float | None = None,
    say: Say = lambda text: None,
    *,
    needs_direct: bool = True,
) -> Verdict:
    """Whether the thoughts of a model do the work; collective over the world's ranks.

    Args:
        who: the model, and the models of equal compute that it is held against (``direct``).
        items: held out, with places and targets.
        alpha: of this look, two-sided; ``config.alpha`` where it is the only one.
        say: is told how far it is.
        needs_direct: whether it can pass only beside a model of equal compute. A model that was
            never taught to answer at once is no match for itself with thoughts.

    Fewer than 30 independent questions or documents are not looked at: INCONCLUSIVE.
    """
    short = too_few(items)
    if short:
        return unknown_verdict(config, len(items), short)
    evidence = gather_evidence(who, items, config, world, say)
    missing = () if who.direct or not needs_direct else (_NO_CONTROL,)
    return reach_verdict(evidence, config, config.alpha if alpha is None else alpha, missing)


def too_few(items: Sequence[ThoughtItem]) -> str:
    """Why no verdict can be reached on so few items; empty where it can."""
    sources = len({item.source for item in items if item.positions})
    if sources >= FEWEST_SOURCES:
        return ""
    return (
        f"there are {sources} held-out questions or documents; no verdict can be given on fewer "
        f"than {FEWEST_SOURCES}, and a sure one takes about {WANTED_ITEMS:,}"
    )
