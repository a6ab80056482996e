"""The packed loss against the same sums written one thought at a time, without packing."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from distforge.quietstar.config import ObjectiveConfig
from distforge.quietstar.episodes import Episode, pack_episodes
from distforge.quietstar.objective import effective_sample_fraction
from distforge.quietstar.thought_loss import ThoughtLoss
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig, sample_thoughts
from distforge.training.distributed import World
from tests.thinking_cases import question_like_items, thinking_pair

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
THOUGHT = ThoughtConfig(max_tokens=4, closing="learned", temperature=1.3)
KL = 0.2
PER_ITEM = 3


@pytest.fixture(scope="module")
def setting():
    """A model, a different reference, and episodes that a third, stale model wrote."""
    model, tokenizer = thinking_pair()
    tags = Tags.from_tokenizer(tokenizer)
    stale, reference = copy.deepcopy(model), copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    for other, scale in ((stale, 0.05), (reference, 0.2)):
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += scale * parameter.data.std() * noise
    episodes = []
    for item in question_like_items(3):
        rows = torch.zeros(PER_ITEM, dtype=torch.int64)
        thoughts = sample_thoughts(
            stale,
            torch.tensor([item.text]),
            torch.ones(1, len(item.text), dtype=torch.int64),
            rows,
            rows + item.positions[0],
            tags,
            THOUGHT,
            generator,
        )
        targets = torch.tensor([item.targets[0]] * PER_ITEM)
        advantages = torch.randn(PER_ITEM, generator=generator)
        episodes.append(Episode(item, thoughts, targets, torch.rand(PER_ITEM), advantages))
    return model, reference, tags, episodes


def naive_loss(model, reference, tags: Tags, episodes, config: ObjectiveConfig) -> Tensor:
    """By the formulas of the docstrings, a thought at a time."""
    banned = list(tags.banned(close=False))
    total = torch.zeros(())
    for episode in episodes:
        for index in range(PER_ITEM):
            length = int(episode.thoughts.lengths[index])
            written = episode.thoughts.tokens[index, :length].tolist()
            content = written[:-1] if episode.thoughts.closed[index] else written
            target = [int(t) for t in episode.targets[index]]
            ids = [*episode.item.text, tags.open, *content, tags.close, *target]
            begin = len(episode.item.text)
            both = []
            for lm in (model.lm, reference.lm):
                logits = lm(input_ids=torch.tensor([ids])).logits[0]
                restricted = logits[begin : begin + length].clone() / THOUGHT.temperature
                restricted[:, banned] = -1e9
                both.append((restricted.log_softmax(dim=-1), logits))
            log_probs, after = both[0][0], both[0][1][begin + 1 + len(content) :][: len(target)]
            expected = both[1][0].detach()
            own = log_probs[range(length), written]
            before = episode.thoughts.log_probs[index, :length]
            weight = (own.detach() - before).exp().clamp(max=config.max_importance)
            advantage = episode.advantages[index]
            if config.kl_estimator == "k1":
                gap = own.detach() - expected[range(length), written]
                advantage = advantage - KL * gap.sum()
            else:
                kl = (log_probs.exp() * (log_probs - expected)).sum(dim=-1)
                total = total + KL * kl.sum()
            # The gradient of the ratio at 1 is that of the log-probability; its value is 1.
            score = own - own.detach() + 1
            total = total - (weight * advantage * score).sum()
            total = total + config.entropy_bonus * 0.5 * (log_probs.exp() * log_probs).sum()
            nll = -after.log_softmax(dim=-1)[range(len(target)), target].sum()
            total = total + config.nll_weight * nll
    return total


@pytest.mark.parametrize("estimator", ["exact", "k1"])
def test_value_and_gradient_are_those_of_the_naive_form(setting, estimator):
    model, reference, tags, episodes = setting
    config = ObjectiveConfig(kl_estimator=estimator, max_importance=1.05, entropy_bonus=0.3)
    loss = ThoughtLoss(config, tags, THOUGHT, reference, KL)
    loss.progress = 0.5
    gradients = []
    for compute in (
        lambda: loss(model, pack_episodes(episodes, tags))[0],
        lambda: naive_loss(model, reference, tags, episodes, config),
    ):
        model.zero_grad()
        value = compute()
        value.backward()
        gradients.append((value.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    (ours, found), (naive, expected) = gradients
    assert torch.allclose(ours, naive, rtol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("estimator", ["exact", "k1"])
def test_thoughts_that_are_alike_are_packed_once_and_count_each(setting, estimator):
    model, reference, tags, episodes = setting
    doubled = [
        dataclasses.replace(
            episode,
            thoughts=episode.thoughts.at(torch.tensor([2, 0, 2, 1, 0])),
            targets=episode.targets[:1].repeat(5, 1),
            advantages=torch.tensor([1.0, -0.5, 0.25, 2.0, 0.0]),
        )
        for episode in episodes
    ]
    # Alike but for what was expected of its tokens: each is weighed by its own.
    doubled[0].thoughts.log_probs[4] -= 0.1
    apart = [
        dataclasses.replace(
            episode,
            thoughts=episode.thoughts.at(slice(i, i + 1)),
            targets=episode.targets[i : i + 1],
            advantages=episode.advantages[i : i + 1],
        )
        for episode in doubled
        for i in range(5)
    ]
    packed = pack_episodes(doubled, tags)
    assert len(packed["copies"]) == 3 * PER_ITEM
    assert packed["input_ids"].numel() < pack_episodes(apart, tags)["input_ids"].numel()
    found = []
    for parts in ([doubled], [[episode] for episode in apart]):
        loss = ThoughtLoss(ObjectiveConfig(kl_estimator=estimator), tags, THOUGHT, reference, KL)
        model.zero_grad()
        results = [loss(model, pack_episodes(part, tags)) for part in parts]
        value = sum(result[0] for result in results)
        value.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        hits = sum(int(result[1]) for result in results)
        found.append((float(value.detach()), gradient, hits, loss.take_statistics(WORLD)))
    together, alone = found
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    rounding = 1e-5 * float(alone[1].norm())
    torch.testing.assert_close(together[1], alone[1], rtol=0, atol=rounding)
    assert together[2] == alone[2]
    assert dataclasses.astuple(together[3]) == pytest.approx(
        dataclasses.astuple(alone[3]), rel=1e-4
    )


def test_the_cut_into_micro_batches_changes_nothing(setting):
    model, reference, tags, episodes = setting
    loss = ThoughtLoss(ObjectiveConfig(), tags, THOUGHT, reference, KL)
    whole = loss(model, pack_episodes(episodes, tags))
    together = loss.take_statistics(WORLD)
    parts = [loss(model, pack_episodes([episode], tags)) for episode in episodes]
    apart = loss.take_statistics(WORLD)
    assert float(whole[0]) == pytest.approx(sum(float(part[0]) for part in parts), rel=1e-5)
    assert int(whole[1]) == sum(int(part[1]) for part in parts)
    assert dataclasses.astuple(together) == pytest.approx(dataclasses.astuple(apart), rel=1e-5)


def test_fresh_thoughts_have_full_effective_size_and_stale_ones_less(setting):
    model, reference, tags, episodes = setting
    config = ObjectiveConfig(min_ess=0.3)
    loss = ThoughtLoss(config, tags, THOUGHT, reference, KL)
    loss(model, pack_episodes(episodes, tags))
    assert loss.veto(WORLD) == ""
    ess = loss.take_statistics(WORLD).ess
    assert 0.3 < ess < 1
    # As if one thought had become a hundred times likelier than all the others.
    far = [
        dataclasses.replace(
            episodes[0],
            thoughts=dataclasses.replace(
                episodes[0].thoughts,
                log_probs=episodes[0].thoughts.log_probs - torch.tensor([[5.0], [0.0], [0.0]]),
            ),
        ),
        *episodes[1:],
    ]
    loss(model, pack_episodes(far, tags))
    assert "below min_ess (0.3)" in loss.veto(WORLD)


def test_the_effective_size_is_of_whole_thoughts(setting):
    model, reference, tags, episodes = setting
    loss = ThoughtLoss(ObjectiveConfig(), tags, THOUGHT, reference, KL)
    loss(model, pack_episodes(episodes, tags))
    ratios = []
    for episode in episodes:
        for index in range(PER_ITEM):
            length = int(episode.thoughts.lengths[index])
            ids = [*episode.item.text, tags.open, *episode.thoughts.tokens[index, :length].tolist()]
            with torch.no_grad():
                logits = model.lm(input_ids=torch.tensor([ids])).logits[0]
            restricted = logits[len(episode.item.text) : -1] / THOUGHT.temperature
            restricted[:, list(tags.banned(close=False))] = -torch.inf
            own = restricted.log_softmax(dim=-1)[range(length), ids[-length:]]
            ratios.append(float((own - episode.thoughts.log_probs[index, :length]).sum().exp()))
    expected = effective_sample_fraction(
        sum(ratios), sum(ratio**2 for ratio in ratios), len(ratios)
    )
    assert loss.take_statistics(WORLD).ess == pytest.approx(expected, rel=1e-4)
