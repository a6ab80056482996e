"""Bad input: one clear error, exit status 2, nothing half-written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from distforge.cli import main
from distforge.data import make_examples, write_examples
from tests.tiny_models import tiny_llama, tiny_tokenizer


class Hostile:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return open, (str(self.path), "w")


def expect(
    capsys: pytest.CaptureFixture, config: str, output: Path, words: list[str], *messages: str
) -> None:
    capsys.readouterr()  # what the test itself printed on its way here
    assert main(["bake", "--config", config, "--output", str(output), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    for message in messages:
        assert message in error
    assert not output.exists() or not any(output.iterdir())


def save_model(directory: Path, **options: object) -> Path:
    tokenizer = tiny_tokenizer(**options)  # type: ignore[arg-type]
    tiny_llama(len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_unknown_key_and_wrong_type(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture
) -> None:
    text = Path(config).read_text(encoding="utf-8")
    for broken, message in (
        (text.replace("max_steps = 12", "max_stps = 12"), "max_stps"),
        (text.replace("max_steps = 12", 'max_steps = "12"'), "max_steps"),
        (text.replace("[training]", "[trainings]"), "trainings"),
        (text.replace("micro_batches = 2\n[optimizer", "micro_batches = 99\n[optimizer"), "99"),
        (text + "\n[[[", "broken.toml"),
    ):
        path = tmp_path / "broken.toml"
        path.write_text(broken)
        expect(capsys, str(path), tmp_path / "out", [], message)
    expect(capsys, str(tmp_path / "none.toml"), tmp_path / "out", [], "none.toml")


def test_champions_that_cannot_be_used(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture
) -> None:
    corrupt = save_model(tmp_path / "corrupt")
    (corrupt / "model.safetensors").write_bytes(b"\xff" * 100)
    no_weights = save_model(tmp_path / "no_weights")
    (no_weights / "model.safetensors").unlink()
    no_eos = save_model(tmp_path / "no_eos", eos=False)
    ran = tmp_path / "ran"
    hostile = tmp_path / "hostile.pt"
    hostile.write_bytes(pickle.dumps({"state_dict": Hostile(ran)}))
    also_hostile = tmp_path / "zipped.pt"
    torch.save({"state_dict": {}, "extra": Hostile(ran)}, also_hostile)
    for path, message in (
        (tmp_path / "missing", "does not exist"),
        (corrupt, "corrupt"),
        (no_weights, "no_weights"),
        (no_eos, "eos"),
        (hostile, "hostile.pt"),
        (also_hostile, "zipped.pt"),
    ):
        expect(capsys, config, tmp_path / "out", ["--champion.path", str(path)], message)
    assert not ran.exists()


def test_datasets_that_cannot_be_used(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture
) -> None:
    good = tmp_path / "good.jsonl"
    write_examples(make_examples(70, 0), good)
    lines = good.read_text().splitlines()
    row = json.loads(lines[1])
    cases = {
        "empty.jsonl": ("", "empty.jsonl"),
        "broken.jsonl": (f"{lines[0]}\n{lines[1][:50]}\n", "line 2"),
        "strategy.jsonl": (
            f"{lines[0]}\n{json.dumps({**row, 'strategy': 'luck'})}\n",
            "'luck'",
        ),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_text(content)
        expect(capsys, config, tmp_path / "out", ["--data.path", str(path)], message)
    only_train = tmp_path / "train_only.jsonl"
    write_examples([e for e in make_examples(70, 0) if e.split == "train"], only_train)
    words = ["--data.path", str(only_train)]
    expect(capsys, config, tmp_path / "out", words, "held-out")


def test_sequences_longer_than_the_model(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture
) -> None:
    short = save_model(tmp_path / "short")  # a context of 128 tokens
    expect(capsys, config, tmp_path / "out", ["--champion.path", str(short)], "context", "128")


def test_output_that_is_something_else(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture
) -> None:
    mine = tmp_path / "out" / "tiny" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    words = ["bake", "--config", config, "--output", str(tmp_path / "out")]
    for existing in ("resume", "replace"):
        assert main([*words, "--existing", existing]) == 2
        assert "not a run of distforge" in capsys.readouterr().err
    assert mine.read_text() == "years of work"


def test_names_and_commands(tmp_path: Path, config: str, capsys: pytest.CaptureFixture) -> None:
    for name in ("../up", "a/b", "", ".hidden", "a b"):
        expect(capsys, config, tmp_path / "out", ["--name", name], "name")
    assert main(["bak"]) == 2
    assert "unknown command" in capsys.readouterr().err
    assert main(["--help"]) == 0
