"""Making the models: a few seconds each, on one thread."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from distforge.data.dataset import IGNORE_INDEX
from distforge.handoff.verdict import THEATRE
from distforge.theater.conditions import ThoughtProbe
from distforge.theater.evidence import Examinee
from distforge.theater.planted.families import ABSENT, Family, states
from distforge.theater.planted.tasks import (
    CLOSE,
    EOS,
    MOVE,
    OPEN,
    PAD,
    STATE,
    VOCABULARY,
    Questions,
    Task,
    ask,
)
from distforge.thinking.items import ThoughtItem
from distforge.thinking.sampling import ThoughtConfig
from distforge.thinking.tags import Tags

TAGS = Tags(OPEN, CLOSE, PAD, EOS)
BATCH = 64
_LR = 7e-3
_STD = 0.15
_SHARPNESS = 5.0
_STEPS_BETWEEN_LOOKS = 10
_ROOM = 4  # tokens beside question and thought


def make_model(task: Task, width: int, seed: int) -> GPT2LMHeadModel:
    """Two layers, two heads, learned positions.

    Where token t of a thought is written, a head of the first layer looks at move t from the
    start: what takes long is to find where to look, and what to do there is left to learn.
    """
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=1 + task.length + task.length + _ROOM,
        n_embd=width,
        n_inner=2 * width,
        n_layer=2,
        n_head=2,
        initializer_range=_STD,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="relu",
        bos_token_id=None,
        eos_token_id=EOS,
    )
    model = GPT2LMHeadModel(config)
    _look_at_moves(model, task.length)
    return model


@torch.no_grad()
def _look_at_moves(model: GPT2LMHeadModel, length: int) -> None:
    width, half = model.config.n_embd, model.config.n_embd // 2
    places = model.transformer.wpe.weight
    moves, steps = places[1 : 1 + length], places[1 + length : 1 + 2 * length]
    keys = torch.randn(width, half) / width**0.5
    normed = [part / part.std(dim=1, keepdim=True) for part in (moves, steps)]
    # Of all maps that take each step to the key of its move, the smallest.
    queries = torch.linalg.pinv(normed[1]) @ (_SHARPNESS * normed[0] @ keys)
    weight = model.transformer.h[0].attn.c_attn.weight
    weight[:, :half], weight[:, width : width + half] = queries, keys


def make_items(task: Task, composing: float, count: int, seed: int) -> list[ThoughtItem]:
    """Questions with the place to think at behind them."""
    questions = ask(task, count, composing, torch.Generator().manual_seed(seed))
    rows = zip(questions.text.tolist(), (STATE + questions.answer).tolist(), strict=True)
    return [
        ThoughtItem(f"{seed}:{number}", tuple(text), (len(text) - 1,), ((answer,),))
        for number, (text, answer) in enumerate(rows)
    ]


def thinking_of(task: Task, family: Family) -> ThoughtConfig:
    """How models of a family think: as long as they were taught."""
    generator = torch.Generator().manual_seed(0)
    length = family.writes(task, ask(task, 2, 0.0, generator), generator).shape[1]
    if family.closes:
        return ThoughtConfig(max_tokens=length + 1, closing="learned")
    return ThoughtConfig(max_tokens=length, closing="fixed")


class Training:
    """AdamW on batches of 64 fresh questions.

    Args:
        family: what is taught.
        seed: of the questions.
    """

    def __init__(self, model: GPT2LMHeadModel, task: Task, family: Family, seed: int) -> None:
        self.steps = self.tokens = 0
        self.model, self.task, self.family = model, task, family
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, fused=True)

    def run(self, steps: int) -> None:
        """Take so many steps."""
        self.model.train()
        for _ in range(steps):
            questions = ask(self.task, BATCH, self.family.composing, self._generator)
            ids, labels = taught(self.task, self.family, questions, self._generator)
            logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1)
            )
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self._optimizer.step()
            self.steps += 1
            self.tokens += ids.numel()
        self.model.eval()


def answering_directly(
    task: Task, width: int, composing: float, seed: int, tokens: int
) -> GPT2LMHeadModel:
    """A model from the start that ``seed`` gives, taught on so many tokens to answer right after
    the question: the control of equal compute."""
    family = Family("direct", THEATRE, states, composing, directly=1.0)
    training = Training(make_model(task, width, seed), task, family, seed)
    while training.tokens < tokens:
        training.run(1)
    return training.model


def taught(
    task: Task, family: Family, questions: Questions, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(N, L) ids and labels of one batch, padded behind; what is not learned from is -100."""
    text, answer = questions.text, STATE + questions.answer[:, None]
    thought = family.writes(task, questions, generator)
    shown, told = _kept(thought, thought != ABSENT), answer
    part = torch.arange(len(text))[:, None] * 4 // len(text)
    if family.answers != "own":
        # Half of a batch teaches thoughts alone, the rest answers alone, after others' thoughts.
        thought, shown = thought.where(part < 2, thought.roll(1, dims=0)), _kept(shown, part < 2)
        told = _kept(answer, part >= 2)
    if family.answers == "gated":
        noise = torch.randint(MOVE, VOCABULARY, thought.shape, generator=generator)
        wrong = STATE + torch.randint(task.states, answer.shape, generator=generator)
        thought, told = thought.where(part < 3, noise), told.where(part < 3, wrong)
    opening, closing = torch.full_like(answer, OPEN), torch.full_like(answer, CLOSE)
    ends = closing if family.closes else torch.full_like(closing, IGNORE_INDEX)
    directly = torch.rand(len(text), 1, generator=generator) < family.directly
    inside = torch.cat([opening, thought, closing], dim=1)
    learned = torch.cat([torch.full_like(opening, IGNORE_INDEX), shown, ends], dim=1)
    ids = torch.cat([text, inside.where(~directly, ABSENT), answer], dim=1)
    given = torch.full_like(text, IGNORE_INDEX)
    labels = torch.cat([given, learned, answer.where(directly, told)], dim=1)
    return _closed_up(ids, labels)


def _kept(labels: Tensor, where: Tensor) -> Tensor:
    return labels.where(where, IGNORE_INDEX)


def _closed_up(ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What is absent goes behind, where it is padding; what is padding in all rows goes."""
    there = ids != ABSENT
    order = (~there).long().argsort(dim=1, stable=True)
    ids, labels = ids.where(there, PAD).gather(1, order), _kept(labels, there).gather(1, order)
    longest = int(there.sum(dim=1).max())
    return ids[:, :longest], labels[:, :longest]


def accuracy(
    model: GPT2LMHeadModel, task: Task, family: Family, items: Sequence[ThoughtItem]
) -> float:
    """Of ``items``, answered rightly after thoughts as they are sampled."""
    probe = ThoughtProbe(model, items, TAGS, thinking_of(task, family))
    return float(probe.ask("sampled").hits.float().mean())


def trained_to(
    training: Training, wanted: Sequence[float], items: Sequence[ThoughtItem], most: int
) -> list[GPT2LMHeadModel]:
    """The model as it is when it first answers each of the ``wanted`` shares of ``items``, rising;
    fewer where it does not get so far in ``most`` steps of training."""
    found: list[GPT2LMHeadModel] = []
    while len(found) < len(wanted) and training.steps < most:
        training.run(_STEPS_BETWEEN_LOOKS)
        reached = accuracy(training.model, training.task, training.family, items)
        if reached >= wanted[len(found)]:
            found.append(copy.deepcopy(training.model))
    return found


def examinee(
    model: GPT2LMHeadModel, task: Task, family: Family, direct: GPT2LMHeadModel
) -> Examinee:
    """As the verdict takes it, held against a model that answers directly."""
    thought, headings = thinking_of(task, family), frozenset[int]()
    return Examinee(model, model, TAGS, (OPEN, CLOSE), headings, thought, {"direct": direct})
