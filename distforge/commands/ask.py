"""``distforge ask``: put questions to a model and read what it writes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, get_args

import tyro

from distforge.activity import heard, on_show
from distforge.errors import InputError, require_choice, require_in
from distforge.evaluation.streaming import stream_answer
from distforge.models.loading import Champion, load_champion
from distforge.models.storage import LoadDtype
from distforge.rendering import Renderer
from distforge.rendering.layout import Shown, lay_out, without_thoughts
from distforge.rendering.renderer import Asked
from distforge.training.distributed import World, entered_world

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class AskConfig:
    """Ask a model questions: one with --question, one a line from a pipe, or as you type them.

    model: a Hugging Face directory, a run's directory, a .safetensors or .pt file, or hf://NAME.
    question: ask only this.
    prompt: an instruction in front of every question, if the model needs one.
    thoughts: show what the model writes between <think> and </think>; --no-thoughts hides it.
    remember: earlier questions and answers are part of the next question.
    temperature: 0 takes the likeliest token each time; above, tokens are sampled.
    seed: of sampling.
    max_new_tokens: longest answer, its thoughts included.
    dtype: to load the model in. "auto" is its own where this machine computes in that, else
        float32.
    """

    model: Annotated[str, tyro.conf.arg(metavar="MODEL"), tyro.conf.Positional]
    question: str = ""
    prompt: str = ""
    thoughts: bool = True
    remember: bool = False
    temperature: float = 0.0
    seed: int = 0
    max_new_tokens: int = 256
    dtype: LoadDtype = "auto"

    def __post_init__(self) -> None:
        require_in("[0, inf)", temperature=self.temperature)
        require_in("[1, inf]", max_new_tokens=self.max_new_tokens)
        require_choice("dtype", self.dtype, get_args(LoadDtype))


def ask(config: AskConfig) -> int:
    """Print the answers."""
    champion = load_champion(config.model, config.dtype)
    with entered_world() as world:
        talk = _Talk(config, champion, world)
        if config.question:
            talk.answer(config.question)
            return 0
        by_hand = sys.stdin.isatty()
        if by_hand:
            print(f"{config.model}: type a question; an empty line ends.", file=sys.stderr)
        try:
            for question in _typed() if by_hand else _piped():
                if not by_hand:
                    print(f"> {question}")
                talk.answer(question)
                print()
        except KeyboardInterrupt:
            print()
    return 0


def _typed() -> Iterator[str]:
    if os.name == "posix":
        import readline  # noqa: F401 (`input` then edits lines and remembers them)
    while True:
        try:
            with on_show():  # who is asked for a question need not hear what is going on
                question = input("> ").strip()
        except EOFError:
            print()
            return
        if not question:
            return
        yield question


def _piped() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8")  # as all that is read, whatever the locale
    try:
        for line in sys.stdin:
            if line.strip():
                yield line.strip()
    except UnicodeDecodeError as error:
        raise InputError(f"the questions are not UTF-8 ({error}); convert them") from error


class _Talk:
    """Asks one question after another and prints each answer as it is written."""

    def __init__(self, config: AskConfig, champion: Champion, world: World) -> None:
        self._config = config
        self._model, self._tokenizer = champion.model.to(world.device), champion.tokenizer
        self._renderer = Renderer(self._tokenizer, self._model)
        self._turns: list[dict[str, str]] = []
        terminal = sys.stdout.isatty()
        self._styles = (_DIM, _PLAIN) if terminal and "NO_COLOR" not in os.environ else ("", "")

    def answer(self, question: str) -> None:
        config = self._config
        asked = Asked(question, config.prompt, tuple(self._turns))
        [prompt] = self._renderer.prompts([asked])
        shown = Shown(lambda text: print(text, end="", flush=True))

        def written(text: str) -> None:
            whole = self._renderer.turn(text)
            laid_out = lay_out(whole, thoughts=config.thoughts, styles=self._styles)
            shown.update(laid_out)
            heard()

        with on_show() if sys.stdout.isatty() else nullcontext():
            generation = stream_answer(
                self._model,
                self._tokenizer,
                prompt,
                config.max_new_tokens,
                written,
                temperature=config.temperature,
                seed=config.seed,
            )
        whole = self._renderer.turn(generation.text)
        shown.update(lay_out(whole, thoughts=config.thoughts, styles=self._styles, finished=True))
        print(flush=True)
        if not generation.finished:
            print(
                f"(stopped after {len(generation.token_ids)} tokens; --max-new-tokens sets how "
                "many it may write)",
                file=sys.stderr,
            )
        if config.remember:
            self._turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": without_thoughts(whole)},
            ]
