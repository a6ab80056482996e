"""What pages are made of: badges, tables and cards, all of it plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Badge:
    """A coloured word beside the title; grey where it is neither good nor bad (None)."""

    identity: str
    text: str
    is_good: bool | None

    @property
    def tone(self) -> str:
        """Its class in the page's style."""
        return {None: "neutral", True: "good", False: "bad"}[self.is_good]


@dataclass(frozen=True)
class Link:
    """A way to another page, relative to this one."""

    text: str
    address: str


@dataclass(frozen=True)
class Row:
    """A row of a table, plain text in each cell.

    Attributes:
        name: the first cell.
        numbers: the others.
        met: where given, a last cell that says yes or no.
        opens: whether it begins a group of rows, set off by a heavier line.
        is_total: whether it sums up, in bold.
        links: to other pages; where given, they stand in a last cell.
    """

    name: str
    numbers: Sequence[str]
    met: bool | None = None
    opens: bool = False
    is_total: bool = False
    links: Sequence[Link] = ()


@dataclass(frozen=True)
class Table:
    """A table on a card. The first column is text."""

    identity: str
    headings: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Card:
    """What a model is known by; facts that are empty are left out."""

    title: str
    facts: Mapping[str, Any]
