"""What gc may remove: never the newest, an aliased one, or an ancestor of what stays."""

from pathlib import Path

import pytest

from distforge.errors import InputError
from distforge.registry import ModelVersion
from distforge.registry.retention import choose_removed


def versions(*described: tuple[str, str, tuple[str, ...]]) -> list[ModelVersion]:
    return [
        ModelVersion(name, Path("/models"), "0" * 64, parent, aliases=aliases)
        for name, parent, aliases in described
    ]


BAKED = versions(*[(f"baked/{n}", "", ()) for n in range(1, 13)])


@pytest.mark.parametrize(
    "keep_last, keep_every, kept",
    [(1, 0, {12}), (3, 0, {10, 11, 12}), (1, 5, {5, 10, 12}), (20, 0, set(range(1, 13)))],
)
def test_newest_and_every_so_many_stay(keep_last: int, keep_every: int, kept: set[int]) -> None:
    removed = choose_removed(BAKED, "baked", keep_last, keep_every)
    assert removed == [f"baked/{n}" for n in range(1, 13) if n not in kept]


def test_aliased_ones_stay() -> None:
    known = versions(("a/1", "", ("baked-best",)), ("a/2", "", ()), ("a/3", "", ()))
    assert choose_removed(known, "a", 1, 0) == ["a/2"]


def test_a_lineage_is_never_cut() -> None:
    known = versions(
        ("champion/1", "", ()),
        ("champion/2", "", ()),
        ("champion/3", "", ()),
        ("baked/1", "champion/1", ()),
        ("baked/2", "champion/2", ()),
        ("baked/3", "champion/3", ()),
        ("rl/1", "baked/1", ()),
    )
    # rl/1 stays, so baked/1 does, so champion/1 does.
    assert choose_removed(known, "baked", 1, 0) == ["baked/2"]
    assert choose_removed(known, "champion", 1, 0) == []
    assert choose_removed([v for v in known if v.version != "baked/2"], "champion", 1, 0) == [
        "champion/2"
    ]


@pytest.mark.parametrize("keep_last, keep_every", [(0, 0), (-1, 0), (1, -1)])
def test_bad_numbers(keep_last: int, keep_every: int) -> None:
    with pytest.raises(InputError, match="expected at least 1 and 0"):
        choose_removed(BAKED, "baked", keep_last, keep_every)
