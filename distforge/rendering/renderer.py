"""`Renderer`: a conversation to the ids that a model reads, and what it writes back to text.

Training, sampling, step 2, exams, benchmarks and prompt baking all go through it, so a model is
asked as it was trained, and as whoever loads it with plain transformers asks it: by
``apply_chat_template(…, add_generation_prompt=True)`` where there is a template, else by the
tokenizer's own encoding of the plain layout (`plain`), with BOS where it adds one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge.errors import InputError
from distforge.rendering.control import ControlTokens
from distforge.rendering.plain import conversation_text
from distforge.rendering.stops import absent_ids, padding_id, stop_ids
from distforge.rendering.template import ChatTemplate, Message
from distforge.rendering.thinking_tokens import CLOSE, OPEN

# Whose turns may hold thinking tokens.
_OURS = ("system", "assistant")


@dataclass(frozen=True)
class Asked:
    """A question as it is put to a model.

    prompt: an instruction of ours: a system message where the template has that role, else it is
        put in front of what the user says first.
    turns: what was said before: messages with "role" and "content". A system message among them
        is the data's own, and refused by a template that has no such role.
    """

    question: str
    prompt: str = ""
    turns: tuple[Message, ...] = ()


class Renderer:
    """The way of one tokenizer, and of the model that it belongs to.

    Args:
        tokenizer: any, with an end of sequence; not changed. Make a new renderer when its tokens
            or its template have changed.
        model: adds the ends of sequence that its configurations list, and the ids of its
            vocabulary that the tokenizer lacks.

    Raises:
        InputError: the tokenizer has no end of sequence, or a template that cannot ask a question.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no eos token; set tokenizer.eos_token and save it")
        self.tokenizer, self._model = tokenizer, model
        has_template = bool(getattr(tokenizer, "chat_template", None))
        self._template = ChatTemplate(tokenizer) if has_template else None
        source = self._template.source if self._template else ""
        self._control = ControlTokens(tokenizer, source)
        # What a prompt ends with: what follows is encoded as it stands behind that.
        self._tail = "\n"
        if self._template:
            _, after = self._template.around_question
            self._tail = after[self._control.last_start(after) :]

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        return self._template is not None

    @cached_property
    def end(self) -> int:
        """The id that ends a turn: the template's, else the tokenizer's end of sequence."""
        if self._template:
            after = self._template.after_answer
            found = self._control.first(after)
            if found and not after[: found.start()].strip():
                return self._control.ids[found[0]]
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """All ids that end a turn, in order: of tokenizer, model and template."""
        return tuple(sorted(stop_ids(self.tokenizer, self._model) | {self.end}))

    @property
    def pad(self) -> int:
        """See `padding_id`."""
        return padding_id(self.tokenizer)

    @cached_property
    def absent(self) -> tuple[int, ...]:
        """Ids that the model could write and no tokenizer reads; none without a model."""
        return () if self._model is None else absent_ids(self.tokenizer, self._model)

    @property
    def opened(self) -> str:
        """What a template that opens a thought itself ends each prompt with, from ``<think>`` on;
        empty for others."""
        return self._template.opened if self._template else ""

    def prompts(self, asked: Sequence[Asked], *, opened: bool = True) -> list[list[int]]:
        """Ids up to where the answer begins, of each question.

        Control tokens in questions and turns are text; in the instructions and in the assistant's
        own turns, thinking tokens are thinking tokens.

        Args:
            opened: False leaves out the thought that a template opens: for what writes
                ``<think>`` itself.

        Raises:
            InputError: the template refuses the turns.
        """
        texts = [self._text(one) for one in asked]
        if self._template is None:
            return [[*self.first, *ids] for ids in self._control.encode(texts)]
        if not opened:
            texts = [text.removesuffix(self.opened) for text in texts]
        return self._control.encode(texts)

    def continued(self, texts: Sequence[str], *, opened: bool = True) -> list[list[int]]:
        """Ids of texts to be gone on with as they are, BOS included; a template is given each as
        the user's turn. ``opened`` as in `prompts`."""
        if self._template:
            return self.prompts([Asked(text) for text in texts], opened=opened)
        return [[*self.first, *ids] for ids in self.documents(texts)]

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that nobody asks and nobody tells, control tokens being text, without BOS:
        `first` goes in front of whatever piece is read."""
        return self._control.encode([self._control.literal(text) for text in texts])

    def completions(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids that a model should write behind a prompt, the end of its turn included.

        Behind a template that opens the thought itself, a text that begins with ``<think>`` loses
        it, and one without a thought closes an empty one.
        """
        if opened := self.opened:
            texts = [_behind(opened, text) for text in texts]
        return [[*ids, self.end] for ids in self.following(texts)]

    def following(self, texts: Sequence[str], after: str = "") -> list[list[int]]:
        """Ids of texts as they follow ``after``, by default a prompt's end: a tokenizer that marks
        the beginning of a text would mark theirs. Thinking tokens are thinking tokens."""
        after = after or self._tail
        literal = [self._control.literal(text, thinking=True) for text in texts]
        lead, *joined = self._control.encode([after, *(after + text for text in literal)])
        apart = [ids[: len(lead)] != lead for ids in joined]
        alone = iter(
            self._control.encode([t for t, one in zip(literal, apart, strict=True) if one])
        )
        return [
            next(alone) if one else ids[len(lead) :] for ids, one in zip(joined, apart, strict=True)
        ]

    def turn(self, text: str) -> str:
        """The whole turn of which a model wrote ``text``: with the thought that was opened."""
        return self.opened + text

    @cached_property
    def around_question(self) -> tuple[list[int], str]:
        """Ids in front of any question, and the text behind it."""
        if self._template is None:
            before, after = "Question:", "\n"
        else:
            before, after = self._template.around_question
        # In most vocabularies a word takes the space before it along.
        ids = self._control.encode([before.rstrip(" ")])[0]
        return [*([] if self._template else self.first), *ids], after

    @cached_property
    def first(self) -> list[int]:
        """Ids that the tokenizer puts in front of a text by itself (BOS); none behind it count."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        for start in range(len(whole)):
            if whole[start : start + len(bare)] == bare:
                return list(whole[:start])
        return []

    def _text(self, asked: Asked) -> str:
        """With a stand-in for each control token that is not one."""
        messages = [
            {
                "role": turn["role"],
                "content": self._control.literal(turn["content"], thinking=turn["role"] in _OURS),
            }
            for turn in asked.turns
        ]
        self._check_system_role(messages)
        messages.append({"role": "user", "content": self._control.literal(asked.question)})
        if asked.prompt:
            prompt = self._control.literal(asked.prompt, thinking=True)
            self._instruct(messages, prompt)
        if self._template:
            return self._template.render(messages, generation=True)
        return conversation_text(messages)

    def _instruct(self, messages: list[Message], prompt: str) -> None:
        if self._template and not self._template.has_system_role:
            first = next(message for message in messages if message["role"] == "user")
            first["content"] = f"{prompt}\n{first['content']}"
        elif messages[0]["role"] == "system":
            messages[0]["content"] = f"{prompt}\n\n{messages[0]['content']}"
        else:
            messages.insert(0, {"role": "system", "content": prompt})

    def _check_system_role(self, messages: Sequence[Message]) -> None:
        if self._template is None or self._template.has_system_role:
            return
        for message in messages:
            if message["role"] == "system":
                raise InputError(
                    f"the data's system message {message['content'][:60]!r} cannot be given to "
                    "this model: its chat template has no system role; write it into the user's "
                    "first message, or bake it with `distforge bake-prompt`"
                )


def _behind(opened: str, text: str) -> str:
    """A completion that follows ``opened``, which ends every prompt."""
    blank = opened.removeprefix(OPEN)
    if text.startswith(OPEN):
        return text.removeprefix(OPEN).removeprefix(blank)
    return text if CLOSE in text else f"\n{CLOSE}\n\n{text}"
