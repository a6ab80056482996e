"""Next-token loss against one row at a time."""

import pytest
import torch
from torch import nn

from distforge.training.loss import sum_loss
from tests.tiny_models import tiny_gpt2, tiny_llama
from tests.training_cases import VOCAB, collate, examples


class WholeLogits(nn.Module):
    """A causal LM that computes every logit, as some do."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, use_cache):
        return self.model(input_ids, attention_mask=attention_mask, use_cache=use_cache)


def by_rows(model, rows):
    loss, hits = torch.zeros(()), 0
    for ids, prompt in rows:
        logits = model(ids[None]).logits[0, prompt - 1 : -1]
        loss = loss + nn.functional.cross_entropy(logits, ids[prompt:], reduction="sum")
        hits += int((logits.argmax(-1) == ids[prompt:]).sum())
    return loss, hits


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("wrap", [lambda m: m, WholeLogits], ids=["keeps", "whole"])
def test_loss_hits_and_gradient(build, wrap):
    model, rows = build(VOCAB), examples(0)
    expected, hits = by_rows(model, rows)
    expected.backward()
    gradient = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss, correct = sum_loss(wrap(model), collate(rows))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert int(correct) == hits
    for parameter, other in zip(model.parameters(), gradient, strict=True):
        torch.testing.assert_close(parameter.grad, other, rtol=1e-3, atol=1e-5)


def test_logits_are_computed_from_the_first_target_on():
    model = tiny_llama(VOCAB)
    widths = []
    model.lm_head.register_forward_hook(lambda *args: widths.append(args[2].shape[1]))
    batch = collate([(torch.arange(2, 22), 15), (torch.arange(2, 20), 16)])
    sum_loss(model, batch)
    # 20 columns; the first target is column 15, predicted by column 14
    assert widths == [6]


def test_a_batch_without_targets_gives_zero_and_a_gradient():
    model = tiny_llama(VOCAB)
    batch = collate([(torch.arange(2, 10), 8)])
    loss, correct = sum_loss(model, batch)
    loss.backward()
    assert (float(loss.detach()), int(correct)) == (0.0, 0)
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters())


def test_the_first_token_is_never_a_target():
    model = tiny_llama(VOCAB)
    batch = collate([(torch.arange(2, 10), 1)])
    everything = {**batch, "labels": batch["input_ids"].clone()}
    assert torch.equal(sum_loss(model, everything)[0], sum_loss(model, batch)[0])
