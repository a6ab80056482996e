"""What the spool sends, and when: with the registry's calls noted instead of kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from distforge.errors import InputError
from distforge.registry.spool import Spool


class Noted:
    """A registry of plain dictionaries; versions are numbered as they come."""

    def __init__(self) -> None:
        self.metadata: dict[str, Mapping[str, object]] = {}
        self.aliases: dict[str, str] = {}

    def register_model(self, phase, step, model_type, model_path, metadata) -> str:
        if "gone" in model_path:
            raise InputError(f"{model_path} is not an exported model")
        version = f"{model_type}/{len(self.metadata) + 1}"
        self.metadata[version] = metadata
        return version

    def get(self, version: str) -> SimpleNamespace:
        return SimpleNamespace(metrics=self.metadata[version].get("metrics", {}))

    def by_alias(self, model_type: str, alias: str) -> SimpleNamespace | None:
        return self.get(self.aliases[alias]) if alias in self.aliases else None

    def promote(self, version: str, alias: str) -> None:
        self.aliases[alias] = version


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool.jsonl")


def test_a_child_is_sent_with_the_version_of_its_parent(spool: Spool) -> None:
    registry = Noted()
    parent = spool.register(3, 1, "baked", Path("a"), {"seed": 0})
    spool.register(3, 2, "thinking", Path("b"), {"seed": 1}, parent_key=parent)
    assert spool.replay(registry) == 2
    assert registry.metadata == {
        "baked/1": {"seed": 0},
        "thinking/2": {"seed": 1, "parent": "baked/1"},
    }


def test_what_was_settled_is_not_sent_again(spool: Spool) -> None:
    registry = Noted()
    spool.register(3, 1, "baked", Path("a"), {})
    lost = spool.register(3, 1, "baked", Path("gone"), {})
    orphan = spool.register(3, 2, "thinking", Path("b"), {}, parent_key=lost)
    assert spool.replay(registry) == 3
    assert [entry["key"] for entry in spool.failed()] == [lost, orphan]
    assert spool.pending() == []
    assert spool.replay(registry) == 0
    assert list(registry.metadata) == ["baked/1"]


@pytest.mark.parametrize(
    ("accuracies", "latest", "best"),
    [((0.8, 0.7), "baked/2", "baked/1"), ((0.7, 0.8), "baked/2", "baked/2")],
)
def test_the_best_alias_moves_to_what_is_at_least_as_good(
    spool: Spool, accuracies: tuple[float, float], latest: str, best: str
) -> None:
    registry = Noted()
    for accuracy in accuracies:
        metadata = {"metrics": {"accuracy": accuracy}}
        wanted = {"aliases": ("baked-latest",), "best": ("baked-best", "accuracy")}
        spool.register(3, 1, "baked", Path("a"), metadata, **wanted)
    spool.replay(registry)
    assert registry.aliases == {"baked-latest": latest, "baked-best": best}
