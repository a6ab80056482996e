"""Champions in every form they come in, and every way in which one can be wrong."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from distforge.errors import InputError
from distforge.models import loading
from distforge.models.export import export_model
from distforge.models.loading import load_champion
from tests.champion_files import (
    INPUT,
    MODELS,
    PHASE2,
    ROWS,
    TOKENIZER,
    directory_of,
    pair_of,
    pickle_of,
    refused,
)
from tests.tiny_models import LINES, tiny_gpt2, tiny_llama, tiny_tokenizer


@pytest.mark.parametrize("form", [directory_of, pair_of, pickle_of])
@pytest.mark.parametrize("name", MODELS)
def test_every_form_gives_the_same_model(
    tmp_path: Path, name: str, form: Callable[..., Path]
) -> None:
    model = MODELS[name]()
    path = form(model, tmp_path)
    champion = load_champion(str(path))

    weights = path / "model.safetensors" if path.is_dir() else path
    assert champion.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert champion.source == str(path)
    assert champion.metadata == ({} if path.is_dir() else PHASE2)
    assert type(champion.model) is type(model)
    assert not champion.model.training
    embedding, head = (
        champion.model.get_input_embeddings(),
        champion.model.get_output_embeddings(),
    )
    assert (head.weight is embedding.weight) == (name != "llama-untied")
    assert torch.equal(champion.model(INPUT).logits, model(INPUT).logits)
    assert champion.tokenizer.encode(LINES[1]) == TOKENIZER.encode(LINES[1])


@pytest.mark.parametrize("form", [directory_of, pair_of, pickle_of])
def test_bf16_weights_become_fp32(tmp_path: Path, form: Callable[..., Path]) -> None:
    model = tiny_llama(ROWS).bfloat16()
    loaded = load_champion(str(form(model, tmp_path))).model
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.get_input_embeddings().weight, model.model.embed_tokens.weight)
    assert loaded.config.dtype == torch.bfloat16  # what an export will be


def test_of_a_tied_pair_either_name_will_do(tmp_path: Path) -> None:
    model = tiny_llama(ROWS)
    weights = {k: v for k, v in model.state_dict().items() if k != "model.embed_tokens.weight"}
    champion = load_champion(str(pair_of(model, tmp_path, weights)))
    assert torch.equal(champion.model(INPUT).logits, model(INPUT).logits)


@pytest.mark.parametrize("form", [directory_of, pair_of])
def test_a_tied_pair_that_differs_is_refused(tmp_path: Path, form: Callable[..., Path]) -> None:
    path = form(tiny_llama(ROWS), tmp_path)
    file = path / "model.safetensors" if path.is_dir() else path
    weights = load_file(file)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, file, metadata={"format": "pt"})
    refused(path, str(path), "ties the output head", "tie_word_embeddings")


def test_shards_are_read_and_hashed(tmp_path: Path) -> None:
    model, directory = tiny_llama(ROWS), tmp_path / "hf"
    model.save_pretrained(directory, max_shard_size="40KB")
    TOKENIZER.save_pretrained(directory)
    files = sorted(directory.glob("*.safetensors"))
    assert len(files) > 1
    listing = "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files)
    champion = load_champion(str(directory))
    assert champion.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    assert torch.equal(champion.model(INPUT).logits, model(INPUT).logits)
    files[0].unlink()
    refused(directory, "hf")


def test_loading_is_quiet_and_leaves_transformers_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = directory_of(tiny_llama(ROWS), tmp_path)
    bars, verbosity = (
        transformers_logging.is_progress_bar_enabled(),
        transformers_logging.get_verbosity(),
    )
    capfd.readouterr()
    load_champion(str(path))
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.is_progress_bar_enabled() == bars
    assert transformers_logging.get_verbosity() == verbosity


@pytest.mark.parametrize("form", [directory_of, pair_of])
@pytest.mark.parametrize("length", [0, 4, 500, -1])
def test_a_truncated_safetensors_is_refused(
    tmp_path: Path, form: Callable[..., Path], length: int
) -> None:
    path = form(tiny_gpt2(ROWS), tmp_path)
    file = path / "model.safetensors" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[:length])
    refused(path, str(path), "again")


@pytest.mark.parametrize("form", [directory_of, pair_of])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", ["model.norm.weight is missing"]),
        ("misshapen", ["model.norm.weight has shape (5,) instead of (32,)"]),
        ("not finite", ["model.norm.weight", "not finite"]),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, form: Callable[..., Path], fault: str, words: list[str]
) -> None:
    path = form(tiny_llama(ROWS), tmp_path)
    file = path / "model.safetensors" if path.is_dir() else path
    weights = load_file(file)
    norm = weights.pop("model.norm.weight")
    if fault != "missing":
        norm[0] = float("nan")
        weights["model.norm.weight"] = norm[:5].clone() if fault == "misshapen" else norm
    save_file(weights, file, metadata={"format": "pt"})
    refused(path, str(path), *words)


def test_further_weights_in_a_directory_are_ignored_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_llama(ROWS)
    file = directory_of(model, tmp_path) / "model.safetensors"
    save_file(load_file(file) | {"value_head.weight": torch.zeros(2)}, file, {"format": "pt"})
    with caplog.at_level(logging.WARNING, logger="distforge"):
        champion = load_champion(str(file.parent))
    assert "value_head.weight" in caplog.text
    assert torch.equal(champion.model(INPUT).logits, model(INPUT).logits)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    directory = directory_of(tiny_llama(ROWS), tmp_path)
    created = tmp_path / "created"
    (directory / "evil.py").write_text(f"open({str(created)!r}, 'w')\n")
    file = directory / "config.json"
    content = json.loads(file.read_text()) | {"model_type": "nonesuch"}
    content["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    file.write_text(json.dumps(content))
    refused(directory, "type 'nonesuch'", "AutoModelForCausalLM", "never run; use a model")
    assert not created.exists()


def test_a_known_type_that_also_brings_code_is_loaded_without_it(tmp_path: Path) -> None:
    model = tiny_llama(ROWS)
    directory = directory_of(model, tmp_path)
    file = directory / "config.json"
    content = json.loads(file.read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    file.write_text(json.dumps(content))
    assert torch.equal(load_champion(str(directory)).model(INPUT).logits, model(INPUT).logits)


def test_a_gated_model_is_refused_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        error = GatedRepoError.__new__(GatedRepoError)
        Exception.__init__(error, "403 Client Error.\nAccess to model x/y is restricted.")
        raise error

    monkeypatch.setattr(loading, "snapshot_download", snapshot_download)
    refused("hf://x/y", "'hf://x/y' is gated", "accept them on its page", "hf auth login")


def test_what_is_not_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("text", encoding="utf-8")
    refused("notes.txt", "'.txt'", ".safetensors")
    Path("empty").mkdir()
    refused("empty", "empty has no config.json")
    refused("./missing", "does not exist", "champion make")
    refused("/missing/too", "does not exist")
    refused("model.pt", "does not exist")
    refused("a b", "does not exist")
    refused("hf://a b", "names no model of the hub", "hf://OWNER/MODEL")
    refused("hf://../up", "names no model of the hub")
    refused("../up", "does not exist")


def test_a_directory_without_safe_weights_is_refused(tmp_path: Path) -> None:
    directory = directory_of(tiny_gpt2(ROWS), tmp_path)
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")
    refused(directory, "has no .safetensors weights", "save_pretrained")


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    """transformers would fetch the model that the adapter names."""
    directory = directory_of(tiny_gpt2(ROWS), tmp_path)
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y"}')
    refused(directory, "holds an adapter", "merge")


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_a_missing_tokenizer_is_refused(tmp_path: Path, name: str) -> None:
    """For GPT-2, transformers makes a tokenizer of one token out of nothing."""
    directory = directory_of(MODELS[name](), tmp_path)
    for file in directory.glob("tokenizer*"):
        file.unlink()
    refused(directory, "no tokenizer can be loaded", "save_pretrained")


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(eos=False)
    for part in (tiny_llama(len(tokenizer)), tokenizer):
        part.save_pretrained(tmp_path / "hf")
    refused(tmp_path / "hf", "no end of sequence", "tokenizer.eos_token = ")


def test_without_padding_the_end_pads_and_it_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer(pad=False)
    export_model(tiny_llama(len(tokenizer)), tokenizer, tmp_path / "hf")
    with caplog.at_level(logging.WARNING, logger="distforge"):
        for _ in range(2):
            loaded = load_champion(str(tmp_path / "hf")).tokenizer
            assert loaded.pad_token_id == loaded.eos_token_id == tokenizer.eos_token_id
    assert caplog.text.count("no padding token") == 1


def test_more_ids_than_rows_are_refused(tmp_path: Path) -> None:
    export_model(tiny_llama(ROWS - 2), TOKENIZER, tmp_path / "hf")
    refused(tmp_path / "hf", f"ids up to {ROWS - 1}", f"{ROWS - 2} rows", f"embeddings({ROWS})")


def test_a_tokenizer_of_another_model_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer, other = tiny_tokenizer(), tiny_tokenizer(("a quite different corpus of text",))
    model = tiny_llama(len(tokenizer))
    ids = torch.tensor([tokenizer(loading._ORDINARY)["input_ids"][:64]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):  # it learns the sentence that it is asked
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "_ASKABLE", (0, 1 << 20))
    for one, told in ((tokenizer, False), (other, True)):
        caplog.clear()
        one.save_pretrained(tmp_path)
        load_champion(str(tmp_path))
        assert ("its tokenizer is another model's" in caplog.text) is told
    # A small model may know a language of its own.
    monkeypatch.undo()
    caplog.clear()
    load_champion(str(tmp_path))
    assert "another model's" not in caplog.text


def test_a_hub_name_is_fetched_and_then_like_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_gpt2(ROWS)
    directory, asked = directory_of(model, tmp_path), []

    def snapshot_download(name: str, *, revision: str, **options: Any) -> str:
        asked.append((name, revision))
        return str(directory)

    monkeypatch.setattr(loading, "snapshot_download", snapshot_download)
    champion = load_champion("hf://Some-One/Model2.5-0.5B@v1.0")
    assert asked == [("Some-One/Model2.5-0.5B", "v1.0")]
    assert champion.source == "hf://Some-One/Model2.5-0.5B@v1.0"
    weights = (directory / "model.safetensors").read_bytes()
    assert champion.sha256 == hashlib.sha256(weights).hexdigest()
    assert torch.equal(champion.model(INPUT).logits, model(INPUT).logits)


def test_an_unreachable_hub_is_an_error_of_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused("hf://nobody/nothing", "'hf://nobody/nothing'", "hub", "give its directory")


def test_what_looks_like_a_name_of_the_hub_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise AssertionError("nobody asked for the hub")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "snapshot_download", snapshot_download)
    refused("nobody/nothing", "'nobody/nothing' does not exist", "hf://NAME")


def test_weights_that_cannot_be_opened_are_not_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors says of any that it is not there."""
    directory = directory_of(tiny_llama(ROWS), tmp_path)
    weights = directory / "model.safetensors"

    def refuse(file: Path, **_: Any) -> None:
        raise FileNotFoundError(f"No such file or directory: {file}")

    with monkeypatch.context() as patch:
        patch.setattr("distforge.models.storage.safe_open", refuse)
        with pytest.raises(InputError, match="could not be opened; see that this user may read it"):
            load_champion(str(directory))
    weights.unlink()
    weights.symlink_to(tmp_path / "absent")
    with pytest.raises(InputError, match=r"model\.safetensors: No such file or directory; put it"):
        load_champion(str(directory))
