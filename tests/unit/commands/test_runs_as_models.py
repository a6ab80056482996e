"""Wherever a model is named, a run's directory stands for the model that the run made."""

from __future__ import annotations

from pathlib import Path

import pytest

from distforge.cli import BAD_INPUT, OK, main
from distforge.data import make_examples, write_splits
from distforge.models.export import export_model
from distforge.models.loading import load_champion
from distforge.models.weight_files import weights_sha256
from tests.tiny_models import tiny_llama, tiny_tokenizer

COMMANDS = {
    "ask": "ask MODEL --question Why? --max-new-tokens 4",
    "optim explain": "optim explain MODEL",
    "handoff check": "handoff check MODEL",
    "champion import": "champion import MODEL --output imported",
    "evaluate": "evaluate --model MODEL --data data --questions 7 --max-new-tokens 4",
    "bake": "bake --champion.path MODEL --dry-run",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended, one that has not, data, and a prompt."""
    folder = tmp_path_factory.mktemp("folder")
    tokenizer = tiny_tokenizer()
    export_model(tiny_llama(len(tokenizer)), tokenizer, folder / "ended" / "model")
    for run in ("ended", "going"):
        (folder / run).mkdir(exist_ok=True)
        (folder / run / "config.toml").write_text('name = "x"\n', encoding="utf-8")
    write_splits(make_examples(140, 0), folder / "data")
    (folder / "prompt.txt").write_text("Be brief.", encoding="utf-8")
    return folder


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS)
def test_a_run_stands_for_its_model(
    line: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outputs = []
    for model in ("ended/model", "ended"):
        place = tmp_path / model.replace("/", "_")
        place.mkdir()
        for name in ("ended", "data", "prompt.txt"):
            (place / name).symlink_to(folder / name)
        monkeypatch.chdir(place)
        status = main(line.replace("MODEL", model).split())
        said = capsys.readouterr()
        assert "no config.json" not in said.err + said.out
        outputs.append((status, said.out.replace("ended/model", "ended")))
    assert outputs[0] == outputs[1]
    assert outputs[0][0] in (OK, 3), outputs  # phase 4 refuses it, and it meets no target
    assert len(outputs[0][1]) > 3


def test_its_weights_are_the_models(folder: Path) -> None:
    assert weights_sha256(folder / "ended") == weights_sha256(folder / "ended" / "model")
    assert load_champion(str(folder / "ended")).sha256 == weights_sha256(folder / "ended")


@pytest.mark.parametrize("name", ["ask", "optim explain", "champion import", "evaluate"])
def test_a_run_without_a_model_is_called_so(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(COMMANDS[name].replace("MODEL", "going").split()) == BAD_INPUT
    assert "the run going has no model yet; let it reach its end" in capsys.readouterr().err
