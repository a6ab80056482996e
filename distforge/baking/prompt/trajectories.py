"""Trajectories: what the model writes for a question, seen from behind two contexts.

A trajectory joins a response to the context the teacher reads (prompt and question) and to the one
the student reads (the question alone). Who wrote it is told by the caller: the prompted teacher
(off-policy) or the student as it is (on-policy).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distforge import durable
from distforge.baking.prompt.distillation import TEACHER_PREFIX
from distforge.baking.prompt.prompt_config import PromptBakingConfig
from distforge.data.dataset import IGNORE_INDEX
from distforge.errors import InputError
from distforge.evaluation.generation import Progress, generate
from distforge.models.context import context_length
from distforge.rendering import Asked, Renderer
from distforge.training.distributed import World
from distforge.training.node_disks import copy_to_all


@dataclass(frozen=True)
class PromptedQuestion:
    """A question and the prompt that its teacher is given; an empty prompt holds a model still."""

    prompt: str
    question: str


@dataclass(frozen=True)
class Trajectory:
    """Token ids of one response and of the two contexts it is read behind.

    ``response`` ends with what ended the writer's turn, unless it was cut off.
    """

    prompted: tuple[int, ...]
    plain: tuple[int, ...]
    response: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the longer of the two sequences."""
        return max(len(self.prompted), len(self.plain)) + len(self.response)

    @property
    def tokens(self) -> int:
        """Tokens that teacher and student read together."""
        return len(self.prompted) + len(self.plain) + 2 * len(self.response)


def encode_contexts(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[PromptedQuestion]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Ids of (prompt and question, question alone) of each, as generation would read them."""
    renderer = Renderer(tokenizer)
    asked = renderer.prompts([Asked(q.question, q.prompt) for q in questions])
    plain = renderer.prompts([Asked(q.question) for q in questions])
    return [(tuple(a), tuple(b)) for a, b in zip(asked, plain, strict=True)]


def write_trajectories(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[PromptedQuestion],
    world: World,
    *,
    by_teacher: bool,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[Trajectory]:
    """One response to every question, sampled at ``temperature`` (0: greedy); collective.

    ``by_teacher`` lets the model read the prompt as well, else the question alone. Ranks share the
    work; each draws from ``seed`` and its rank, and tells ``progress`` of its own share.
    """
    mine = questions[world.rank :: world.size]
    asked = Renderer(tokenizer).prompts(
        [Asked(q.question, q.prompt if by_teacher else "") for q in mine]
    )
    written = generate(
        model,
        tokenizer,
        asked,
        max_new_tokens,
        batch_size,
        progress,
        temperature=temperature,
        seed=seed * world.size + world.rank,
    )
    shares = world.gather_objects(
        [[*told.token_ids, *([] if told.stop is None else [told.stop])] for told in written]
    )
    responses: list[Sequence[int]] = [()] * len(questions)
    for rank, share in enumerate(shares):
        responses[rank :: world.size] = share
    return [
        Trajectory(prompted, plain, tuple(response))
        for (prompted, plain), response in zip(
            encode_contexts(tokenizer, questions), responses, strict=True
        )
    ]


def teacher_trajectories(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[PromptedQuestion],
    config: PromptBakingConfig,
    world: World,
    progress: Progress | None = None,
) -> list[Trajectory]:
    """The prompted model's responses, as ``config`` wants them; collective."""
    return write_trajectories(
        model,
        tokenizer,
        questions,
        world,
        by_teacher=True,
        temperature=config.temperature,
        seed=config.seed,
        max_new_tokens=config.max_response_tokens,
        batch_size=config.generation_batch_size,
        progress=progress,
    )


def collate_trajectories(
    trajectories: Sequence[Trajectory], pad_token_id: int
) -> dict[str, Tensor]:
    """The micro-batch of a `DistillationLoss`: the student's tensors and the teacher's.

    Each is (batch, longest), padded on the right; the response's rows come in the same order.
    """
    student = _columns([(t.plain, t.response) for t in trajectories], pad_token_id)
    teacher = _columns([(t.prompted, t.response) for t in trajectories], pad_token_id)
    return student | {TEACHER_PREFIX + key: value for key, value in teacher.items()}


def _columns(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_token_id: int
) -> dict[str, Tensor]:
    ids = [torch.tensor([*context, *response]) for context, response in rows]
    labels = [row.clone() for row in ids]
    for label, (context, _) in zip(labels, rows, strict=True):
        label[: len(context)] = IGNORE_INDEX
    masks = [torch.ones_like(row) for row in ids]
    fills = {"input_ids": pad_token_id, "attention_mask": 0, "labels": IGNORE_INDEX}
    return {
        key: pad_sequence(tensors, batch_first=True, padding_value=fills[key])
        for key, tensors in (("input_ids", ids), ("attention_mask", masks), ("labels", labels))
    }


def check_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The prompt without surrounding space.

    Raises:
        InputError: it is empty, or the tokenizer loses part of it.
    """
    text = prompt.strip()
    if not text:
        raise InputError("the prompt is empty; write what the model should do into it")
    ids = Renderer(tokenizer).following([text])[0]
    unknown = tokenizer.unk_token_id
    kept = tokenizer.decode(ids, skip_special_tokens=False)
    if (unknown is not None and unknown in ids) or _bare(kept) != _bare(text):
        raise InputError(
            f"the tokenizer cannot encode the prompt {_short(text)!r}: it reads {_short(kept)!r} "
            "back; write the prompt in characters that the model knows"
        )
    return text


def check_room(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[PromptedQuestion],
    max_new_tokens: int,
) -> None:
    """Raise `InputError` where prompt, question and response exceed the model's context."""
    context = context_length(model)
    if context is None:
        return
    for question, (prompted, _) in zip(
        questions, encode_contexts(tokenizer, questions), strict=True
    ):
        if len(prompted) + max_new_tokens > context:
            raise InputError(
                f"the prompt and the question {_short(question.question)!r} are {len(prompted)} "
                f"tokens and {max_new_tokens} more may be written, but the model's context is "
                f"{context}; shorten the prompt or lower max_response_tokens"
            )


def kept_trajectories(
    path: Path | None, world: World, write: Callable[[], dict[str, list[Trajectory]]]
) -> dict[str, list[Trajectory]]:
    """What ``write`` returns, read from ``path`` where an earlier run got so far; collective."""
    if path and world.broadcast_object(path.is_file()):
        copy_to_all(path, world)
        return read_trajectories(path)
    sets = write()
    if path and world.is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_trajectories(sets, path)
    world.barrier()
    return sets


def save_trajectories(sets: Mapping[str, Sequence[Trajectory]], path: Path) -> None:
    """Write named sets as JSON; the file is there whole or not at all."""
    content = {
        name: [[t.prompted, t.plain, t.response] for t in trajectories]
        for name, trajectories in sets.items()
    }
    durable.write_json(path, content, indent=None)


def read_trajectories(path: Path) -> dict[str, list[Trajectory]]:
    """What `save_trajectories` wrote."""
    return {
        name: [Trajectory(*(tuple(part) for part in row)) for row in rows]
        for name, rows in json.loads(path.read_text(encoding="utf-8")).items()
    }


def _bare(text: str) -> str:
    """Letters and signs alone: tokenizers may change case and spacing without losing any."""
    return "".join(text.casefold().split())


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
