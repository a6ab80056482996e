"""What a dry run reads of a champion that is given: a configuration, here, and nothing else."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from distforge.baking import Step1Config
from distforge.champion.make import ChampionConfig
from distforge.commands.dry_run import describe_step1
from distforge.errors import InputError
from tests.tiny_models import tiny_llama


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a dry run asked the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


def step1(path: str) -> Step1Config:
    return Step1Config(champion=ChampionConfig(path=path))


@pytest.mark.parametrize("path", ["champions/25m", "owner/model", "gpt2"])
def test_a_champion_that_is_not_there_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"'{path}' does not exist.*hf://NAME.*champion make"):
        describe_step1(step1(path))


def test_the_shape_comes_from_the_configuration_alone(tmp_path: Path) -> None:
    small, large = tiny_llama(96).config, tiny_llama(9600).config
    described = []
    for config in (small, large):
        config.save_pretrained(tmp_path)
        described.append(describe_step1(step1(str(tmp_path))).splitlines()[-6:])
    assert described[0] != described[1]
