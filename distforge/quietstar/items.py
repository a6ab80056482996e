"""What is thought about: texts, the places in them to think at, and what should come next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from distforge.data import Example
from distforge.data.dataset import IGNORE_INDEX, encode
from distforge.data.free_text import Document, TextConfig
from distforge.data.text import completion_text, question_text
from distforge.errors import InputError
from distforge.quietstar.positions import (
    PositionsConfig,
    choose_positions,
    next_token_entropy,
)
from distforge.quietstar.tags import CLOSE, OPEN, Tags

# Between a document's name and where a piece of it begins.
_CUT = "@"


@dataclass(frozen=True)
class ThoughtItem:
    """One text, in token ids.

    id: names the item in records.
    text: at least one token.
    positions: indices of the text; a thought at p sees ``text[: p + 1]``. Empty until the item is
        `placed`.
    targets: for each position, the tokens that should follow.
    gold: the true thought, without tags, where there is one. It is only ever probed with, never
        trained on.
    """

    id: str
    text: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    gold: tuple[int, ...] | None = None


def question_items(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[ThoughtItem]:
    """Questions with one place to think, before the answer; the target is the answer and the end.

    The tokens are those that step 1 trained on: thought and answer are cut out of the same text.
    Examples longer than ``max_length`` tokens in all are left out.

    Raises:
        InputError: no end-of-sequence token, a trace that is not one thought, or nothing is left.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no eos token; set tokenizer.eos_token and save it")
    asked = encode(tokenizer, [question_text(e.question, tokenizer) for e in examples])
    told = encode(tokenizer, [completion_text(e.reasoning, e.answer) for e in examples])
    opening, closing = (tokenizer.convert_tokens_to_ids(tag) for tag in (OPEN, CLOSE))
    items = []
    for example, question, completion in zip(examples, asked, told, strict=True):
        if len(question) + len(completion) + 1 > max_length:
            continue
        if not question:
            raise InputError(f"the question of example {example.id!r} is empty")
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
                targets=((*completion[end + 1 :], tokenizer.eos_token_id),),
                gold=tuple(completion[1:end]),
            )
        )
    if not items:
        raise InputError(f"none of {len(examples)} examples fits max_length {max_length}; raise it")
    return items


def text_items(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, config: TextConfig
) -> list[ThoughtItem]:
    """Pieces of ``config.tokens`` tokens, which have no places yet (see `placed`).

    A document's rest that is shorter is left out.

    Raises:
        InputError: no document is long enough.
    """
    width, items = config.tokens, []
    encoded = encode(tokenizer, [document.text for document in documents])
    for document, ids in zip(documents, encoded, strict=True):
        for start in range(0, len(ids) - width + 1, width):
            text = tuple(ids[start : start + width])
            items.append(ThoughtItem(f"{document.name}{_CUT}{start}", text, (), ()))
            if config.max_items and len(items) == config.max_items:
                return items
    if not items:
        raise InputError(
            f"none of {len(documents)} documents has {width} tokens; lower text.tokens or give "
            "longer ones"
        )
    return items


def source_of(item: ThoughtItem) -> str:
    """The document that a piece of text was cut from; of a question, its own id."""
    return item.id.rpartition(_CUT)[0] or item.id


def split_probed(
    heldout: Sequence[ThoughtItem], most: int
) -> tuple[list[ThoughtItem], list[ThoughtItem]]:
    """Held-out items that may pick weights, and those that are examined at the end.

    About ``most`` are probed, whole documents of them, but no more than half.

    Raises:
        InputError: fewer than two items.
    """
    if len(heldout) < 2:
        raise InputError(
            f"there is {len(heldout)} held-out item; give two, to probe and to examine"
        )
    half = len(heldout) // 2
    sources = [source_of(item) for item in heldout]
    borders = [i for i in range(1, half + 1) if sources[i] != sources[i - 1]]
    # One long document is cut inside.
    wanted = min(most, half)
    cut = min(borders, key=lambda border: abs(border - wanted), default=wanted)
    return list(heldout[:cut]), list(heldout[cut:])


def placed(
    items: Sequence[ThoughtItem], model: nn.Module, config: PositionsConfig, tags: Tags
) -> list[ThoughtItem]:
    """The items with places to think at, and what follows them in the text.

    Items that have places keep them. Where the places depend on the model's uncertainty, it is
    asked.
    """
    if all(item.positions for item in items):
        return list(items)
    device = next(model.parameters()).device
    ids, mask = (part.to(device) for part in pad_texts(items, tags.pad))
    entropy = next_token_entropy(model, ids, mask) if config.kind == "entropy" else None
    rows, positions = choose_positions(config, mask, following=config.horizon, entropy=entropy)
    places: list[list[int]] = [[] for _ in items]
    for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
        places[row].append(position)
    return [
        replace(
            item,
            positions=tuple(own),
            targets=tuple(item.text[p + 1 : p + 1 + config.horizon] for p in own),
        )
        for item, own in zip(items, places, strict=True)
    ]


def pad_texts(items: Sequence[ThoughtItem], pad: int) -> tuple[Tensor, Tensor]:
    """(items, longest) int64 ids, padded on the right, and the attention mask."""
    rows = [torch.tensor(item.text) for item in items]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def pad_targets(targets: Sequence[Sequence[int]]) -> Tensor:
    """(N, longest) int64, padded behind with -100."""
    rows = [torch.tensor(list(row), dtype=torch.int64) for row in targets]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE_INDEX)


def grouped(items: Sequence[ThoughtItem], thoughts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Rows, positions and the group of every thought, when each place gets ``thoughts`` of them.

    Groups are numbered by item and place; (N,) int64 twice and a list of N.
    """
    places = [(row, place) for row, item in enumerate(items) for place in item.positions]
    rows = torch.tensor([row for row, _ in places]).repeat_interleave(thoughts)
    positions = torch.tensor([place for _, place in places]).repeat_interleave(thoughts)
    return rows, positions, [group for group in range(len(places)) for _ in range(thoughts)]
