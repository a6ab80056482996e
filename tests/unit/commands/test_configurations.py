"""Every shipped configuration: a dry run plans it on any machine, whatever it was written for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from distforge.cli import main

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.toml"))
CARD_MB = 5000.0  # of a 6 GB card, what its driver, CUDA and fragmentation leave


def planned(capsys: pytest.CaptureFixture, *words: str) -> tuple[str, list[float]]:
    """What a dry run says, and the totals that it estimates, in MB."""
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    return said, [float(number) for number in re.findall(r"^total +([\d.]+)$", said, re.M)]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("ranks", ["1", "8"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_dry_run_of_the_whole_succeeds_and_writes_nothing(
    config: Path, ranks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("WORLD_SIZE", ranks)
    said, totals = planned(capsys, "run", "--config", str(config))
    assert len(totals) == 1 + ("# step 2" in said)
    assert "make = true" in said or "--champion.make has it made first" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_dry_run_of_step_1_succeeds(config: Path, capsys) -> None:
    _, totals = planned(capsys, "bake", "--config", str(config))
    assert len(totals) == 1


def test_both_steps_of_25m_parameters_fit_a_small_card_in_float32(capsys) -> None:
    said, totals = planned(capsys, "run", "--config", "gtx1660")
    assert said.count(", float32, one plain process") == 2
    assert len(totals) == 2
    assert max(totals) < CARD_MB


def test_float16_is_planned_for_a_gpu_where_there_is_none(capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    said, _ = planned(capsys, "bake", "--config", "gtx1660", "--engine.dtype", "float16")
    assert "# 1 rank(s), cuda, float16" in said
