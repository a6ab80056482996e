"""Every benchmark can be started: it finds what it imports and reads the configuration it names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from harness import step1_config

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("bench_*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_tells_its_options(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as exit:
        importlib.import_module(script).main()
    assert exit.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_the_quick_configuration_is_read() -> None:
    assert step1_config(ROOT / "configs" / "quick.toml").champion.make
