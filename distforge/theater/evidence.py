"""What the verdict rests on, gathered place by place from a model that thinks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distforge.activity import counted
from distforge.data.dataset import IGNORE_INDEX
from distforge.errors import InputError
from distforge.theater import substitutes
from distforge.theater.coherence import edit_distance
from distforge.theater.config import ALWAYS_WRITTEN, TheaterConfig
from distforge.theater.thought_metrics import measure_each, write_plainly
from distforge.thinking.items import ThoughtItem, in_batches, pad_targets, pad_texts
from distforge.thinking.places import Places
from distforge.thinking.sampling import entropy
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import (
    ThoughtConfig,
    Thoughts,
    contents_of,
    join_thoughts,
    sample_thoughts,
)
from distforge.training.distributed import World

Say = Callable[[str], None]
Content = tuple[int, ...]

# Of a gain in nats: what differs by less differs by the rounding of sums, and must not be ranked.
_GAIN_DIGITS = 4
# Thoughts whose logits over all places are held at once.
_MEASURED = 64


@dataclass(frozen=True)
class PlaceEvidence:
    """Of one place to think at.

    source: the question or document that it is in.
    own: accuracy over its first thoughts, in [0, 1]. controls: by name, 0 or 1.
    thoughts: written there.
    edit: mean edit distance of its thoughts to what the model writes there without thinking tokens.
    floor: mean edit distance between one of its thoughts and the next.
    tokens: of each target token, (entropy without a thought in nats, total variation between the
        predictions after the own thought and after another place's of like length).
    coherence, gain: of each thought, where they are not all the same; gain in nats a target token.
        What is said several times counts as often, with equal numbers: what a model is inclined to
        say is held against what it says now and then.
    """

    source: str
    own: float
    controls: dict[str, float]
    thoughts: int
    edit: float
    floor: float
    tokens: list[tuple[float, float]]
    coherence: list[float]
    gain: list[float]


@dataclass(frozen=True)
class Examinee:
    """The model to be judged, with what it takes to read its thoughts.

    reference: judges how fluent a thought is: the model before reinforcement, or the model itself.
    thinking: ids that count as thinking: none of them stands in a continuation without.
    headings: ids that begin a step of a thought.
    thought: how it thinks.
    direct: by name, models that answer without a thought, which it is held against.
    """

    model: nn.Module
    reference: nn.Module
    tags: Tags
    thinking: tuple[int, ...]
    headings: frozenset[int]
    thought: ThoughtConfig
    direct: Mapping[str, nn.Module] = field(default_factory=dict)


def gather_evidence(
    who: Examinee,
    items: Sequence[ThoughtItem],
    config: TheaterConfig,
    world: World,
    say: Say,
) -> list[PlaceEvidence]:
    """Of every place of the items, in order; collective, ranks share the places.

    Args:
        items: held out, with places and targets.
        say: is told how far it is, every few batches.

    Raises:
        InputError: fewer than two places.
    """
    places = [
        replace(item, text=item.text[: position + 1], positions=(position,), targets=(target,))
        for item in items
        for position, target in zip(item.positions, item.targets, strict=True)
    ]
    if len(places) < 2:
        raise InputError(f"there is {len(places)} place to think at; judge on two at the least")
    batches = in_batches(places, config.batch_size)
    mine: list[tuple[int, list[PlaceEvidence]]] = []
    for number in counted(range(world.rank, len(batches), world.size), "judging batches"):
        # A batch draws its own numbers: the same ones on any number of ranks.
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        mine.append((number, _Batch(who, batches[number], config.thoughts, generator).evidence()))
        say(f"judging: {(number + 1) / len(batches):.0%} of {len(places)} places")
    plain = [(number, [asdict(one) for one in found]) for number, found in mine]
    shared = sorted(
        (pair for part in world.gather_objects(plain) for pair in part), key=lambda pair: pair[0]
    )
    return [PlaceEvidence(**one) for _, found in shared for one in found]


class _Scored(NamedTuple):
    """A thought: whether the answer after it is right, and nats a target token that it gains."""

    hit: bool
    gain: float


class _Batch:
    """A batch of items with one place each: thoughts there, and all that is asked of them."""

    def __init__(
        self,
        who: Examinee,
        items: Sequence[ThoughtItem],
        most: int,
        generator: torch.Generator,
    ) -> None:
        self._who, self._items, self._generator = who, items, generator
        device = next(who.model.parameters()).device
        self._texts = [part.to(device) for part in pad_texts(items, who.tags.pad)]
        self._last = torch.tensor([item.positions[0] for item in items])
        self._targets = pad_targets([item.targets[0] for item in items]).to(device)
        written = self._write(range(len(items)), ALWAYS_WRITTEN)
        self._first = written.at(slice(None, None, ALWAYS_WRITTEN))
        unsure = [place for place, said in enumerate(_by_place(written)) if len(set(said)) > 1]
        if unsure and most > ALWAYS_WRITTEN:
            written = join_thoughts([written, self._write(unsure, most - ALWAYS_WRITTEN)])
        self._said = _by_place(written)
        # Equal thoughts are scored once: which of the distinct ones says this at this place.
        self._number: dict[tuple[int, Content], int] = {}
        once: list[int] = []
        for i, key in enumerate(zip(written.rows.tolist(), contents_of(written), strict=True)):
            if key not in self._number:
                self._number[key] = len(once)
                once.append(i)
        self._distinct = written.at(torch.tensor(once, device=written.rows.device))

    def evidence(self) -> list[PlaceEvidence]:
        """Of all places of the batch, in order."""
        predicted = self._places(range(len(self._items))).predict(None)
        scores = self._score(predicted)
        controls, tokens = self._controls(predicted)
        longest = max(len(content) for said in self._said for content in said)
        who = self._who
        plain = write_plainly(who.model, self._items, who.tags, who.thinking, longest)
        coherent = self._coherence(scores)
        found = []
        for place, said in enumerate(self._said):
            always = said[:ALWAYS_WRITTEN]
            numbers = [self._number[place, content] for content in said]
            varied = [number for number in numbers if number in coherent]
            found.append(
                PlaceEvidence(
                    source=self._items[place].source,
                    own=fmean([float(scores[n].hit) for n in numbers[:ALWAYS_WRITTEN]]),
                    controls={name: float(right[place]) for name, right in controls.items()},
                    thoughts=len(said),
                    edit=fmean([edit_distance(c, plain[place][: max(len(c), 1)]) for c in always]),
                    floor=fmean([edit_distance(a, b) for a, b in itertools.pairwise(always)]),
                    tokens=tokens[place],
                    coherence=[coherent[number] for number in varied],
                    gain=[scores[number].gain for number in varied],
                )
            )
        return found

    def _places(self, which: Sequence[int], model: nn.Module | None = None) -> Places:
        rows = torch.tensor(which)
        ids, mask = self._texts
        return Places(
            model or self._who.model,
            ids,
            mask,
            rows,
            self._last[rows],
            self._targets[rows.to(self._targets.device)],
            self._who.tags,
        )

    def _write(self, which: Sequence[int], each: int) -> Thoughts:
        """Sampled thoughts at each of these places, those of one place together."""
        rows = torch.tensor(which).repeat_interleave(each)
        ids, mask = self._texts
        who = self._who
        return sample_thoughts(
            who.model, ids, mask, rows, self._last[rows], who.tags, who.thought, self._generator
        )

    def _score(self, predicted: Tensor) -> list[_Scored]:
        """Of each distinct thought.

        Args:
            predicted: (M, V) logits of the targets without a thought.
        """
        there = self._targets != IGNORE_INDEX
        without = torch.zeros(there.shape, device=there.device)
        picked = predicted.float().log_softmax(dim=-1)
        without[there] = picked.gather(-1, self._targets[there][:, None])[:, 0]
        rows = self._distinct.rows
        scores = self._places(rows.tolist()).score(self._distinct)
        gains = (scores.log_probs.sum(dim=1) - without.sum(dim=1)[rows]) / there.sum(dim=1)[rows]
        hits = (scores.hits | ~there[rows]).all(dim=1)
        rounded = [round(gain, _GAIN_DIGITS) for gain in gains.tolist()]
        return [_Scored(*pair) for pair in zip(hits.tolist(), rounded, strict=True)]

    def _controls(
        self, predicted: Tensor
    ) -> tuple[dict[str, list[bool]], list[list[tuple[float, float]]]]:
        """Right answers by control; entropy and total variation of each target token, by place."""
        everywhere = range(len(self._items))
        places, who, own = self._places(everywhere), self._who, self._first
        other = places.predict(substitutes.matched(own, self._generator))
        right = {
            "none": self._right(predicted),
            "shuffled": self._right(other),
            "filler": self._right(places.predict(substitutes.filler(own))),
            "random": self._right(places.predict(substitutes.random(own, self._generator))),
            **{
                name: self._right(self._places(everywhere, model).predict(None))
                for name, model in who.direct.items()
            },
        }
        variation = (places.predict(own).float().softmax(-1) - other.float().softmax(-1)).abs()
        unsure = entropy(predicted.float().log_softmax(dim=-1))
        pairs = iter(zip(unsure.tolist(), (variation.sum(dim=-1) / 2).tolist(), strict=True))
        lengths = (self._targets != IGNORE_INDEX).sum(dim=1).tolist()
        return right, [list(itertools.islice(pairs, length)) for length in lengths]

    def _right(self, logits: Tensor) -> list[bool]:
        """Whether all targets of a place are the likeliest tokens there."""
        there = self._targets != IGNORE_INDEX
        hits = ~there
        hits[there] = logits.argmax(dim=-1) == self._targets[there]
        return hits.all(dim=1).tolist()

    def _coherence(self, scores: Sequence[_Scored]) -> dict[int, float]:
        """Of the content of the distinct thoughts at places that have more than one."""
        chosen = [
            number
            for number, row in enumerate(self._distinct.rows.tolist())
            if len(set(self._said[row])) > 1
        ]
        who, found = self._who, dict[int, float]()
        for start in range(0, len(chosen), _MEASURED):
            part = chosen[start : start + _MEASURED]
            measured = measure_each(
                who.model,
                who.reference,
                self._items,
                self._distinct.at(torch.tensor(part)),
                torch.tensor([scores[number].gain for number in part]),
                who.tags,
                who.thought,
                who.headings,
            )
            found |= {number: one.content for number, one in zip(part, measured, strict=True)}
        return found


def _by_place(written: Thoughts) -> list[list[Content]]:
    """What is said at each place, in the order in which it was written."""
    said: list[list[Content]] = [[] for _ in range(int(written.rows.max()) + 1)]
    for row, content in zip(written.rows.tolist(), contents_of(written), strict=True):
        said[row].append(content)
    return said
