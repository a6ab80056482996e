"""Which items are thought about at which step."""

from __future__ import annotations

import random
from collections.abc import Sequence

from distforge.errors import InputError
from distforge.quietstar.config import EpisodeConfig
from distforge.rollouts import RolloutRequest
from distforge.thinking.items import ThoughtItem


class EpisodePlan:
    """Which items each request holds: a `RequestPlan`, a pure function of seed and step.

    Every item comes once before any comes twice, in an order drawn anew each time around.

    ``redraws``, 0 at first, is set by who rolls a run back: the same items are asked for, with
    other seeds for each value.

    Raises:
        InputError: no items.
    """

    def __init__(self, items: Sequence[ThoughtItem], config: EpisodeConfig) -> None:
        if not items:
            raise InputError("there is no item to think about; give at least one")
        self._items = items
        self._config = config
        # The order of the latest time around: consecutive requests ask for the same one.
        self._around, self._shuffled = -1, list[int]()
        self.redraws = 0

    def __call__(self, step: int) -> list[RolloutRequest]:
        first = step * self._config.requests_per_step
        return [
            RolloutRequest(number, self._seed(number), self.payload(number))
            for number in range(first, first + self._config.requests_per_step)
        ]

    def payload(self, number: int) -> list[ThoughtItem]:
        """The items of request ``number``."""
        each = self._config.request_size
        return [self._item(number * each + offset) for offset in range(each)]

    def _item(self, episode: int) -> ThoughtItem:
        around, index = divmod(episode, len(self._items))
        return self._items[self._order(around)[index]]

    def _order(self, around: int) -> list[int]:
        if self._around != around:
            order = list(range(len(self._items)))
            random.Random(f"{self._config.seed}:{around}").shuffle(order)
            self._around, self._shuffled = around, order
        return self._shuffled

    def _seed(self, number: int) -> int:
        drawn = f"redraw {self.redraws}:" if self.redraws else ""
        return random.Random(f"{self._config.seed}:{drawn}request:{number}").getrandbits(63)
