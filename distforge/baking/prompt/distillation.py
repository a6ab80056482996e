"""The loss of prompt baking: a student without the prompt follows its teacher that has it.

Teacher and student write the same response behind different contexts, so the same token stands in
different columns of the two. Both are read by their own labels and checked to score the same ids,
the first response token (predicted from the last token of the question) among them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from distforge.baking.prompt.divergence import (
    Head,
    StateTeacher,
    Teacher,
    TopKTeacher,
    sum_divergence,
)
from distforge.data.dataset import IGNORE_INDEX
from distforge.training.loss import keeps_logits

logger = logging.getLogger(__name__)

TEACHER_PREFIX = "teacher_"
TOP_IDS, TOP_LOG_PROBS = "top_ids", "top_log_probs"
CACHED_STATES = "cached_states"

# Largest difference between a model's logits and its head on its last states, relative to the
# largest logit; rounding gives 1e-6 in float32, 4e-3 in bfloat16.
_HEAD_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class DistillationLoss:
    """Divergence between a prompted teacher and the student, over the tokens of their responses.

    A `distforge.training.loss.Loss`. A micro-batch holds ``input_ids, attention_mask, labels`` of
    the student and the same three with ``teacher_`` in front; ``labels`` are −100 but on the
    response. Instead of the teacher's three it may hold what was written down of the teacher, for
    its N response tokens in row order: ``cached_states`` (N, d), or ``top_ids`` (N, k) and
    ``top_log_probs`` (N, k + 1); its model is not run then.

    Attributes:
        teacher: a frozen model on the student's device, or None: the student's own model with its
            adapters off.
        states: whether the model's logits are its head applied to its last states, see
            `logits_are_linear`; else whole logits are held.
        beta: see `distforge.baking.prompt.divergence.divergence`.
        top_k: reduce the teacher to so many outcomes and a tail bucket; 0 is exact.
        chunk_elements: most logits held at once, see `sum_divergence`.
    """

    teacher: nn.Module | None
    states: bool
    beta: float = 0.0
    top_k: int = 0
    chunk_elements: int = 1 << 22

    def __call__(self, module: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Summed divergence in nats, and how many response tokens the student's argmax hits."""
        token_ids = response_ids(batch["labels"])
        teacher = self._teacher(module, batch, token_ids)
        rows, head = self._read(module, batch)
        # The model may run in 16 bit; a KL of a few thousandths of a nat needs whole logits.
        with torch.autocast(rows.device.type, enabled=False):
            return sum_divergence(
                rows,
                head,
                teacher,
                token_ids,
                beta=self.beta,
                chunk_elements=self.chunk_elements,
            )

    def run_teacher(
        self, module: nn.Module, batch: Mapping[str, Tensor], token_ids: Tensor
    ) -> StateTeacher:
        """The teacher on its own inputs, checked to score ``token_ids`` (N,); without gradient.

        Raises:
            ValueError: it scores other tokens.
        """
        theirs = {
            key.removeprefix(TEACHER_PREFIX): value
            for key, value in batch.items()
            if key.startswith(TEACHER_PREFIX)
        }
        if not torch.equal(response_ids(theirs["labels"]), token_ids):
            raise ValueError("teacher and student do not score the same response tokens")
        source = module if self.teacher is None else self.teacher
        with torch.no_grad(), as_teacher(unwrap(source)):
            rows, _ = self._read(source, theirs)
        return StateTeacher(rows, self._teacher_head(module), self.top_k)

    def _teacher(
        self, module: nn.Module, batch: Mapping[str, Tensor], token_ids: Tensor
    ) -> Teacher:
        if TOP_IDS in batch:
            return TopKTeacher(batch[TOP_IDS], batch[TOP_LOG_PROBS])
        if CACHED_STATES in batch:
            return StateTeacher(batch[CACHED_STATES], self._teacher_head(module), self.top_k)
        return self.run_teacher(module, batch, token_ids)

    def _teacher_head(self, module: nn.Module) -> Head:
        if not self.states:
            return _identity
        head = output_head(module if self.teacher is None else self.teacher)
        # An adapter on the head is the student's alone.
        base = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        assert isinstance(base, nn.Module)
        return _in_float32(base)

    def _read(self, module: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Head]:
        """The rows (N, d) that predict the response tokens, and the head that makes logits."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        wanted = batch["labels"][:, 1:] != IGNORE_INDEX
        if not self.states:
            logits = module(**inputs, use_cache=False).logits
            return logits[:, :-1][wanted].float(), _identity
        head = output_head(module)
        return last_states(module, **inputs)[:, :-1][wanted], _in_float32(head)


def response_ids(labels: Tensor) -> Tensor:
    """The labelled tokens (N,) of the columns after the first, row by row."""
    shifted = labels[:, 1:]
    return shifted[shifted != IGNORE_INDEX]


def last_states(module: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """What the output head reads, (batch, length, d), by one forward pass of the whole module.

    The pass goes through the module's own forward (an engine hooks there), and makes logits for no
    more than the last column.
    """
    caught: list[Tensor] = []
    backbone = unwrap(module).base_model
    assert isinstance(backbone, nn.Module)
    hook = backbone.register_forward_hook(lambda _, __, output: caught.append(output[0]))
    try:
        module(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=1
        )
    finally:
        hook.remove()
    return caught[0]


@torch.no_grad()
def logits_are_linear(model: PreTrainedModel) -> bool:
    """Whether logits are the output head on the backbone's states: asked of the model itself.

    Some families cap or scale their logits behind the head, some have no backbone of their own.
    """
    if not keeps_logits(model) or model.base_model is model:
        return False
    head = output_head(model)
    ids = torch.arange(4, device=model.device)[None] % len(model.get_input_embeddings().weight)
    mask = torch.ones_like(ids)
    own = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    ours = _in_float32(head)(last_states(model, ids, mask))
    linear = float((own - ours).abs().max()) <= _HEAD_TOLERANCE[model.dtype] * float(
        own.abs().max()
    )
    if not linear:
        logger.info("%s changes its logits behind the head: they are held whole", type(model))
    return linear


@contextmanager
def as_teacher(model: nn.Module) -> Iterator[None]:
    """Adapters off, evaluation mode (a teacher with dropout would be another one each time)."""
    was_training = model.training
    model.eval()
    try:
        with adapters_off(model):
            yield
    finally:
        model.train(was_training)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before its adapters; they are trained on afterwards."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def output_head(module: nn.Module) -> nn.Module:
    """The module that turns states into logits."""
    inner = unwrap(module)
    assert isinstance(inner, PreTrainedModel)
    head = inner.get_output_embeddings()
    assert isinstance(head, nn.Module)
    return head


def unwrap(module: nn.Module) -> nn.Module:
    """The model inside an engine, or the model itself."""
    inner = getattr(module, "module", module)
    assert isinstance(inner, nn.Module)
    return inner


def _in_float32(head: nn.Module) -> Head:
    def project(rows: Tensor) -> Tensor:
        weight = next(head.parameters())
        if isinstance(head, nn.Linear) and weight.dtype != torch.float32:
            # In 16 bit a logit of 20 is off by 0.06, more than what there is to measure.
            bias = None if head.bias is None else head.bias.float()
            return nn.functional.linear(rows.float(), head.weight.float(), bias)
        logits: Tensor = head(rows.to(weight.dtype))
        return logits.float()

    return project


def _identity(logits: Tensor) -> Tensor:
    return logits
