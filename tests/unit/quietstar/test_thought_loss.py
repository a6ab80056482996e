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
from distforge.thinking.model import ThinkingModel
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import ThoughtConfig, Thoughts, sample_thoughts
from distforge.training.distributed import World
from tests.peak_memory import peak_bytes
from tests.thinking_cases import question_like_items, thinking_pair
from tests.tiny_models import tiny_gpt2, tiny_llama

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
        parts: list = []
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
            if config.kl_estimator == "k1":
                kl = own.detach() - expected[range(length), written]
                to_go = [float(kl[step:].detach().sum()) for step in range(length)]
            else:
                kl = (log_probs.exp() * (log_probs - expected)).sum(dim=-1)
                total = total + KL * kl.sum()
                to_go = [float(kl[step + 1 :].detach().sum()) for step in range(length)]
            parts.append((own, weight, float(episode.advantages[index]), to_go))
            total = total + config.entropy_bonus * 0.5 * (log_probs.exp() * log_probs).sum()
            nll = -after.log_softmax(dim=-1)[range(len(target)), target].sum()
            total = total + config.nll_weight * nll
        for own, weight, advantage, to_go in parts:
            for step, mine in enumerate(to_go):
                peers = sum(sum(other[3][step : step + 1]) for other in parts) - mine
                earned = advantage - KL * (mine - peers / (PER_ITEM - 1))
                # The gradient of the ratio at 1 is that of the log-probability; its value is 1.
                total = total - weight[step] * earned * (own[step] - own[step].detach() + 1)
    return total


@pytest.mark.parametrize("estimator", ["exact", "k1"])
def test_value_and_gradient_are_those_of_the_naive_form(setting, estimator):
    model, reference, tags, episodes = setting
    config = ObjectiveConfig(kl_estimator=estimator, max_importance=1.05, entropy_bonus=0.3)
    loss = ThoughtLoss(config, tags, THOUGHT, reference, KL)
    loss.progress = 0.5
    gradients = []
    for compute in (
        lambda: loss(model, pack_episodes(episodes, tags, 16))[0],
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


def apart(episodes, tags: Tags) -> dict[str, Tensor]:
    """The batch with each thought packed by itself, in a row of its own, and groups as they are."""
    single = [
        dataclasses.replace(
            episode,
            thoughts=episode.thoughts.at(slice(i, i + 1)),
            targets=episode.targets[i : i + 1],
            advantages=episode.advantages[i : i + 1],
        )
        for episode in episodes
        for i in range(len(episode.thoughts))
    ]
    groups = torch.tensor([n for n, e in enumerate(episodes) for _ in range(len(e.thoughts))])
    return {**pack_episodes(single, tags, 16), "group": groups}


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
    packed = pack_episodes(doubled, tags, 16)
    assert len(packed["copies"]) == 3 * PER_ITEM
    alone = apart(doubled, tags)
    assert packed["input_ids"].numel() < alone["input_ids"].numel()
    found = []
    for batch in (packed, alone):
        loss = ThoughtLoss(ObjectiveConfig(kl_estimator=estimator), tags, THOUGHT, reference, KL)
        model.zero_grad()
        results = [loss(model, batch)]
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
    whole = loss(model, pack_episodes(episodes, tags, 16))
    together = loss.take_statistics(WORLD)
    parts = [loss(model, pack_episodes([episode], tags, 16)) for episode in episodes]
    apart = loss.take_statistics(WORLD)
    assert float(whole[0]) == pytest.approx(sum(float(part[0]) for part in parts), rel=1e-5)
    assert int(whole[1]) == sum(int(part[1]) for part in parts)
    assert dataclasses.astuple(together) == pytest.approx(dataclasses.astuple(apart), rel=1e-5)


def test_fresh_thoughts_have_full_effective_size_and_stale_ones_less(setting):
    model, reference, tags, episodes = setting
    config = ObjectiveConfig(min_ess=0.3)
    loss = ThoughtLoss(config, tags, THOUGHT, reference, KL)
    loss(model, pack_episodes(episodes, tags, 16))
    assert loss.veto(WORLD) == ""
    ess = loss.take_statistics(WORLD).ess
    assert 0.3 < ess < 1
    # As if all thoughts but one of nine had become a hundred times less likely than they were.
    left = torch.full((3, PER_ITEM, 1), 5.0)
    left[0, 0] = 0.0
    far = [
        dataclasses.replace(
            episode,
            thoughts=dataclasses.replace(
                episode.thoughts, log_probs=episode.thoughts.log_probs + gone
            ),
        )
        for episode, gone in zip(episodes, left, strict=True)
    ]
    loss(model, pack_episodes(far, tags, 16))
    assert "below min_ess (0.3)" in loss.veto(WORLD)


def log_ratios(model, tags: Tags, episodes) -> Tensor:
    """Of every thought token, the model's log-probability less the writer's; one by one."""
    found = []
    for episode in episodes:
        for index in range(PER_ITEM):
            length = int(episode.thoughts.lengths[index])
            ids = [*episode.item.text, tags.open, *episode.thoughts.tokens[index, :length].tolist()]
            with torch.no_grad():
                logits = model.lm(input_ids=torch.tensor([ids])).logits[0]
            restricted = logits[len(episode.item.text) : -1] / THOUGHT.temperature
            restricted[:, list(tags.banned(close=False))] = -torch.inf
            own = restricted.log_softmax(dim=-1)[range(length), ids[-length:]]
            found.append(own - episode.thoughts.log_probs[index, :length])
    return torch.cat(found)


def test_the_effective_size_is_that_of_the_weights_that_the_loss_uses(setting):
    model, reference, tags, episodes = setting
    loss = ThoughtLoss(ObjectiveConfig(max_importance=1.1), tags, THOUGHT, reference, KL)
    loss(model, pack_episodes(episodes, tags, 16))
    gaps = log_ratios(model, tags, episodes)
    weights = gaps.exp().clamp(max=1.1)
    statistics = loss.take_statistics(WORLD)
    expected = effective_sample_fraction(
        float(weights.sum()), float(weights.square().sum()), len(weights)
    )
    assert statistics.ess == pytest.approx(expected, rel=1e-4)
    assert statistics.gap == pytest.approx(float(gaps.abs().mean()), rel=1e-3)
    assert statistics.max_gap == pytest.approx(float(gaps.abs().max()), rel=1e-3)


def test_rounding_of_a_long_thought_vetoes_nothing(setting):
    """0.03 nats of noise a token, as 16 bits make them, over thoughts of 1,000 tokens."""
    weights = (0.03 * torch.randn(64_000, generator=torch.Generator().manual_seed(0))).exp()
    ess = effective_sample_fraction(float(weights.sum()), float(weights.square().sum()), 64_000)
    assert ess > 0.99
    # Of whole thoughts, as it was once counted.
    whole = weights.log().view(64, 1000).sum(dim=1).exp()
    assert effective_sample_fraction(float(whole.sum()), float(whole.square().sum()), 64) < 0.6


def test_a_model_with_dropout_is_learned_as_it_wrote():
    tokenizer = thinking_pair()[1]
    lm = tiny_gpt2(len(tokenizer))
    assert lm.config.resid_pdrop > 0
    model = ThinkingModel.wrap(lm, mixing=False)
    reference, tags = copy.deepcopy(model), Tags.from_tokenizer(tokenizer)
    generator, episodes = torch.Generator().manual_seed(0), []
    for item in question_like_items(2):
        rows = torch.zeros(PER_ITEM, dtype=torch.int64)
        text = torch.tensor([item.text])
        places = (rows, rows + item.positions[0])
        thoughts = sample_thoughts(
            model, text, torch.ones_like(text), *places, tags, THOUGHT, generator
        )
        targets = torch.tensor([item.targets[0]] * PER_ITEM)
        episodes.append(
            Episode(item, thoughts, targets, torch.rand(PER_ITEM), torch.zeros(PER_ITEM))
        )
    loss = ThoughtLoss(ObjectiveConfig(), tags, THOUGHT, reference, KL)
    model.train()
    model.lm.activation_checkpointing_enable()
    loss(model, pack_episodes(episodes, tags, 16))[0].backward()
    statistics = loss.take_statistics(WORLD)
    assert statistics.ess == pytest.approx(1, abs=1e-6)
    assert statistics.max_gap < 1e-4
    assert abs(statistics.kl) < 1e-6


@pytest.mark.parametrize(
    ("mixing", "estimator"), [(False, "exact"), (False, "k1"), (True, "exact")]
)
def test_logits_in_chunks_give_the_loss_of_whole_ones(mixing, estimator):
    model, tokenizer = thinking_pair(mixing=mixing)
    reference, tags = copy.deepcopy(model), Tags.from_tokenizer(tokenizer)
    for parameter in reference.parameters():
        parameter.data += 0.2 * parameter.data.std() * torch.randn(parameter.shape)
    batch = pack_episodes(sampled_episodes(model, tags), tags, 16)
    config = ObjectiveConfig(kl_estimator=estimator, entropy_bonus=0.3)
    found = []
    for chunk_elements in (1 << 30, 3 * len(tokenizer), 1):
        loss = ThoughtLoss(config, tags, THOUGHT, reference, KL, chunk_elements)
        model.zero_grad()
        value, hits = loss(model, batch)
        value.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        found.append((value.detach(), hits, gradients, loss.take_statistics(WORLD)))
    whole, *chunked = found
    for value, hits, gradients, statistics in chunked:
        assert torch.allclose(value, whole[0], rtol=1e-5)
        assert torch.equal(hits, whole[1])
        assert statistics.kl == pytest.approx(whole[3].kl, rel=1e-4)
        assert statistics.entropy == pytest.approx(whole[3].entropy, rel=1e-5)
        largest = max(float(gradient.abs().max()) for gradient in whole[2].values())
        for name, gradient in whole[2].items():
            assert (gradients[name] - gradient).abs().max() <= 1e-5 * largest, name


def sampled_episodes(model: ThinkingModel, tags: Tags) -> list[Episode]:
    generator, episodes = torch.Generator().manual_seed(5), []
    for item in question_like_items(3):
        rows = torch.zeros(PER_ITEM, dtype=torch.int64)
        text = torch.tensor([item.text])
        places = (rows, rows + item.positions[0])
        mask = torch.ones_like(text)
        thoughts = sample_thoughts(model, text, mask, *places, tags, THOUGHT, generator)
        targets = torch.tensor([item.targets[0]] * PER_ITEM)
        advantages = torch.randn(PER_ITEM, generator=generator)
        episodes.append(Episode(item, thoughts, targets, torch.rand(PER_ITEM), advantages))
    return episodes


def test_peak_memory_does_not_grow_with_the_vocabulary(tmp_path):
    """Beyond weights and their gradients, which do: the tables are frozen here."""
    thought = ThoughtConfig(max_tokens=120)
    tags = Tags.from_tokenizer(thinking_pair()[1])
    item, peaks = question_like_items(1)[0], []
    rows = torch.zeros(PER_ITEM, dtype=torch.int64)
    for vocabulary in (2_000, 150_000):
        model = ThinkingModel.wrap(tiny_llama(vocabulary, max_positions=256), mixing=False)
        reference = copy.deepcopy(model)
        model.lm.get_input_embeddings().requires_grad_(False)
        tokens = torch.full((PER_ITEM, 120), 30) + torch.arange(PER_ITEM)[:, None]
        long = rows + 120
        written = Thoughts(
            rows, rows + item.positions[0], tokens, long, rows.bool(), torch.zeros(PER_ITEM, 120)
        )
        targets = torch.tensor([item.targets[0]] * PER_ITEM)
        episode = Episode(item, written, targets, torch.rand(PER_ITEM), torch.randn(PER_ITEM))
        loss = ThoughtLoss(ObjectiveConfig(), tags, thought, reference, KL, 1 << 19)
        batch = pack_episodes([episode], tags, 16)

        def step(model=model, loss=loss, batch=batch) -> None:
            model.zero_grad()
            loss(model, batch)[0].backward()

        step()
        peaks.append(peak_bytes(step, tmp_path / f"{vocabulary}.json"))
    assert peaks[1] < 1.1 * peaks[0]
    # Whole log-probabilities of both models are more than all that is held.
    assert peaks[1] < 2 * 4 * PER_ITEM * 120 * 150_000 / 10
