"""Items made from data: questions to think about before the answer, and pieces of free text."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from distforge.data import Example
from distforge.data.free_text import Document, TextConfig
from distforge.data.text import completion_text
from distforge.errors import InputError
from distforge.rendering import Asked, Renderer
from distforge.thinking.items import ThoughtItem
from distforge.thinking.tags import CLOSE, OPEN


def question_items(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[ThoughtItem]:
    """Questions with one place to think, before the answer; the target is the answer and the end.

    The tokens are those that step 1 trained on: thought and answer are cut out of the same text.
    Examples longer than ``max_length`` tokens in all are left out.

    Raises:
        InputError: no end-of-sequence token, a trace that is not one thought, or nothing is left.
    """
    renderer = Renderer(tokenizer)
    questions = [Asked(e.question, turns=e.turns) for e in examples]
    asked = renderer.prompts(questions)
    shut = renderer.prompts(questions, opened=False) if renderer.opened else asked
    told = renderer.completions([completion_text(e.reasoning, e.answer) for e in examples])
    opening, closing = (tokenizer.convert_tokens_to_ids(tag) for tag in (OPEN, CLOSE))
    items = []
    for example, prompt, written, question in zip(examples, asked, told, shut, strict=True):
        # With what a template writes of the thought itself.
        completion = [*prompt[len(question) :], *written]
        if len(question) + len(completion) > max_length:
            continue
        if completion[0] != opening or completion.count(closing) != 1:
            raise InputError(
                f"the reasoning of example {example.id!r} should be one thought, "
                f"{OPEN} … {CLOSE}; check the data with `distforge data check`"
            )
        end = completion.index(closing)
        items.append(
            ThoughtItem(
                id=example.id,
                text=tuple(question),
                positions=(len(question) - 1,),
                targets=(tuple(completion[end + 1 :]),),
                gold=tuple(completion[1:end]),
            )
        )
    if not items:
        raise InputError(f"none of {len(examples)} examples fits max_length {max_length}; raise it")
    return items


def answer_items(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[ThoughtItem]:
    """As `question_items`, of questions whose reasoning nobody has written down: there is no true
    thought, and ``max_length`` is that of question and answer.

    Raises:
        InputError: no end-of-sequence token, or nothing is left.
    """
    renderer = Renderer(tokenizer)
    asked = renderer.prompts([Asked(e.question, turns=e.turns) for e in examples], opened=False)
    told = renderer.following([f"\n{completion_text('', e.answer)}" for e in examples], CLOSE)
    items = [
        ThoughtItem(
            id=example.id,
            text=tuple(question),
            positions=(len(question) - 1,),
            targets=((*answer, renderer.end),),
        )
        for example, question, answer in zip(examples, asked, told, strict=True)
        if len(question) + len(answer) < max_length
    ]
    if not items:
        raise InputError(f"none of {len(examples)} examples fits max_length {max_length}; raise it")
    return items


def text_items(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, config: TextConfig
) -> list[ThoughtItem]:
    """Pieces of ``config.tokens`` tokens, which have no places yet (see `placed`).

    Where the tokenizer puts BOS in front of a text, each begins with it. A document's rest that is
    shorter is left out.

    Raises:
        InputError: no document is long enough.
    """
    renderer, items = Renderer(tokenizer), []
    first = renderer.first
    width = config.tokens - len(first)
    encoded = renderer.documents([document.text for document in documents])
    for document, ids in zip(documents, encoded, strict=True):
        for start in range(0, len(ids) - width + 1, width):
            text = (*first, *ids[start : start + width])
            name = f"{document.name}@{start}"
            items.append(ThoughtItem(name, text, (), (), document=document.name))
            if config.max_items and len(items) == config.max_items:
                return items
    if not items:
        raise InputError(
            f"none of {len(documents)} documents has {width} tokens; lower text.tokens or give "
            "longer ones"
        )
    return items
