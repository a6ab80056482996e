"""``distforge ask``, on a tiny model that writes what it happens to."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from distforge.cli import BAD_INPUT, OK, main
from distforge.evaluation.generation import generate
from distforge.evaluation.streaming import stream_answer
from distforge.models.export import export_model
from distforge.rendering import Renderer
from distforge.rendering.renderer import Asked
from tests.tiny_models import tiny_llama, tiny_tokenizer

QUESTIONS = ("What is 12 + 34?", "Which number comes next?")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory, as far as a question needs one."""
    directory = tmp_path_factory.mktemp("run")
    tokenizer = tiny_tokenizer()
    export_model(tiny_llama(len(tokenizer)), tokenizer, directory / "model")
    return directory


def plain_answer(run: Path, question: str, tokens: int) -> str:
    """What transformers alone makes of the exported model."""
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    ids = tokenizer(f"Question: {question}\n", return_tensors="pt").input_ids
    written = model.generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(written, skip_special_tokens=True)


def test_one_question_is_answered_as_transformers_would(run, capsys):
    words = ["ask", str(run), "--question", QUESTIONS[0], "--max-new-tokens", "20"]
    assert main(words) == OK
    told = capsys.readouterr()
    assert told.out == plain_answer(run, QUESTIONS[0], 20).lstrip() + "\n"
    assert "stopped after 20 tokens; --max-new-tokens" in told.err


def test_a_pipe_has_a_question_on_each_line(run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([QUESTIONS[0], "", QUESTIONS[1], ""])))
    assert main(["ask", str(run), "--max-new-tokens", "8"]) == OK
    assert capsys.readouterr().out == "".join(
        f"> {question}\n{plain_answer(run, question, 8).lstrip()}\n\n" for question in QUESTIONS
    )


def test_a_remembered_question_is_part_of_the_next(run, capsys, monkeypatch):
    def ask(*words: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(QUESTIONS)))
        assert main(["ask", str(run), "--max-new-tokens", "8", *words]) == OK
        return capsys.readouterr().out.split(f"> {QUESTIONS[1]}\n")[1].strip()

    first = plain_answer(run, QUESTIONS[0], 8).strip()
    both = f"{QUESTIONS[0]}\n{first}\n\nQuestion: {QUESTIONS[1]}"
    assert ask("--remember") == plain_answer(run, both, 8).strip()
    assert ask() == plain_answer(run, QUESTIONS[1], 8).strip() != ask("--remember")


def test_an_answer_on_the_way_is_the_answer_in_the_end(run):
    model = AutoModelForCausalLM.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    [prompt] = Renderer(tokenizer, model).prompts([Asked(QUESTIONS[0])])
    for temperature in (0.0, 1.5):
        texts: list[str] = []
        streamed = stream_answer(
            model, tokenizer, prompt, 30, texts.append, temperature=temperature, seed=3
        )
        assert all(streamed.text.startswith(text) for text in texts)
        assert len(texts) > 5
        if not temperature:
            assert [streamed] == generate(model, tokenizer, [prompt], 30, 1)


def test_sampling_depends_on_the_seed_alone(run, capsys):
    def ask(seed: int) -> str:
        words = ["ask", str(run), "--question", QUESTIONS[0], "--max-new-tokens", "16"]
        assert main([*words, "--temperature", "2.0", "--seed", str(seed)]) == OK
        return capsys.readouterr().out

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "'nowhere' does not exist"),
        (["{run}", "--question", "why? " * 200], "; shorten it"),
        (["{run}", "--temperature", "-1"], "temperature is -1.0"),
        (["{run}", "--max-new-tokens", "0"], "max_new_tokens is 0"),
    ],
    ids=["no model", "too long", "temperature", "tokens"],
)
def test_what_cannot_be_asked_is_refused(words, said, run, capsys):
    words = [word.format(run=run) for word in words]
    words += [] if "--question" in words else ["--question", "why?"]
    assert main(["ask", *words]) == BAD_INPUT
    assert said in capsys.readouterr().err


def test_on_a_terminal_questions_are_typed_until_an_empty_line(run):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "distforge", "ask", str(run), "--max-new-tokens", "8"]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        os.write(ours, f"{QUESTIONS[0]}\n\n".encode())
        out, _ = process.communicate(timeout=120)
    os.close(ours)
    assert process.returncode == OK
    assert plain_answer(run, QUESTIONS[0], 8).strip() in out
