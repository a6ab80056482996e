"""A champion is made by one process at a time, and none that is whole goes before another is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distforge.champion import make
from distforge.champion.make import (
    ChampionConfig,
    ensure_champion,
    is_made,
    remove_champion,
    unfinished,
)
from distforge.errors import InputError
from distforge.training import run_directory
from distforge.training.distributed import World
from distforge.training.engine_config import EngineConfig
from distforge.training.run_directory import locked

ALONE = World(0, 0, 1, torch.device("cpu"))


@pytest.fixture
def config(tmp_path: Path, monkeypatch) -> ChampionConfig:
    def train(recipe, engine, max_length, partial, world, console) -> None:
        (partial / make.MODEL_DIRECTORY).mkdir()
        (partial / make.MODEL_DIRECTORY / "model.safetensors").write_bytes(b"trained for hours")

    monkeypatch.setattr(make, "make_champion", train)
    return ChampionConfig(path=str(tmp_path / "champions" / "embedded"), make=True)


def ensure(config: ChampionConfig) -> bool:
    return ensure_champion(config, EngineConfig(), 64, ALONE)


def names(config: ChampionConfig) -> set[str]:
    return {path.name for path in Path(config.path).parent.iterdir()}


def test_it_is_made_once(config) -> None:
    assert ensure(config)
    assert not ensure(config)
    assert names(config) == {"embedded"}


def test_while_one_process_makes_it_another_is_refused(config, monkeypatch) -> None:
    monkeypatch.setattr(run_directory, "_WAIT_SECONDS", 0.0)
    path = Path(config.path)
    with (
        locked(path, "the champion"),
        pytest.raises(
            InputError, match=f"the champion {path} is in use by process {os.getpid()} on"
        ),
    ):
        ensure(config)
    assert ensure(config)


def test_a_whole_one_is_used_also_while_another_process_holds_it(config) -> None:
    ensure(config)
    unfinished(Path(config.path)).mkdir()
    with locked(Path(config.path)):
        assert not ensure(config)
        assert unfinished(Path(config.path)).exists()
    assert not ensure(config)
    assert names(config) == {"embedded"}


def test_one_that_is_made_anew_is_kept_until_the_new_one_is_whole(config, monkeypatch) -> None:
    ensure(config)
    remove_champion(Path(config.path))
    assert not is_made(config)

    def fail(*_: object) -> None:
        raise InputError("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(make, "make_champion", fail)
        with pytest.raises(InputError, match="full"):
            ensure(config)
    kept = Path(config.path).with_name(".embedded.previous") / "model.safetensors"
    assert kept.read_bytes() == b"trained for hours"
    assert ensure(config)
    assert names(config) == {"embedded"}


def test_what_was_begun_by_another_recipe_is_left_alone(config) -> None:
    partial = unfinished(Path(config.path))
    partial.mkdir(parents=True)
    (partial / "recipe.sha256").write_text("e" * 64)
    (partial / "checkpoints").mkdir()
    with pytest.raises(InputError, match="the beginnings of a champion of another recipe"):
        ensure(replace(config))
    assert (partial / "checkpoints").exists()
