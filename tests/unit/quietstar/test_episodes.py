"""Which items are thought about when, and how thoughts come into micro-batches."""

from contextlib import nullcontext
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from distforge.data import make_examples
from distforge.errors import InputError
from distforge.quietstar.advantages import Advantages
from distforge.quietstar.config import EpisodeConfig, RewardConfig
from distforge.quietstar.episode_batches import EpisodeBatches
from distforge.quietstar.episode_plan import EpisodePlan
from distforge.quietstar.episodes import Episode, told_apart
from distforge.quietstar.items import question_items
from distforge.quietstar.rewards import compute_rewards
from distforge.quietstar.scorer import Scorer
from distforge.rollouts import Rollout
from distforge.thinking.places import TargetScores
from distforge.thinking.positions import PositionsConfig, placed
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import Thoughts
from distforge.training.distributed import World
from tests.thinking_cases import question_like_items, text_like_items, thinking_pair

CONFIG = EpisodeConfig(episodes=40, batch_size=4, episodes_per_request=2, seed=3)


def test_every_item_comes_once_before_any_comes_twice():
    items = question_like_items(10)
    plan = EpisodePlan(items, CONFIG)
    requests = [request for step in range(5) for request in plan(step)]
    assert [request.id for request in requests] == list(range(10))
    assert len({request.seed for request in requests}) == 10
    ids = [item.id for request in requests for item in request.payload]
    assert sorted(ids[:10]) == sorted(ids[10:]) == sorted(item.id for item in items)
    assert ids[:10] != ids[10:]


def test_the_plan_is_a_function_of_seed_and_step():
    items = question_like_items(10)
    forwards = EpisodePlan(items, CONFIG)
    expected = [forwards(step) for step in range(6)]
    backwards = EpisodePlan(items, CONFIG)
    assert [backwards(step) for step in reversed(range(6))] == expected[::-1]
    other = EpisodePlan(items, EpisodeConfig(**{**vars(CONFIG), "seed": 4}))
    assert other(0) != expected[0]
    with pytest.raises(InputError, match="no item to think about"):
        EpisodePlan([], CONFIG)


def test_questions_are_cut_out_of_the_text_that_step_1_trains_on():
    _, tokenizer = thinking_pair()
    examples = make_examples(70, 0)
    tags = Tags.from_tokenizer(tokenizer)
    for item, example in zip(question_items(examples, tokenizer, 10_000), examples, strict=True):
        ids = [*item.text, tags.open, *item.gold, tags.close, *item.targets[0]]
        text = f"Question: {example.question}\n{example.reasoning}\nAnswer: {example.answer}"
        assert tokenizer.decode(ids[:-1]) == text
        assert ids[-1] == tokenizer.eos_token_id
        assert item.positions == (len(item.text) - 1,)
    with pytest.raises(InputError, match="fits max_length"):
        question_items(examples, tokenizer, 5)


@pytest.mark.parametrize("kind", ["interval", "all", "entropy"])
def test_free_text_gets_places_and_what_follows_them(kind):
    model, tokenizer = thinking_pair()
    tags = Tags.from_tokenizer(tokenizer)
    config = PositionsConfig(kind=kind, interval=4, horizon=2)
    items = text_like_items(3)
    for before, after in zip(items, placed(items, model, config, tags), strict=True):
        assert after.text == before.text
        assert after.positions
        for position, target in zip(after.positions, after.targets, strict=True):
            assert target == after.text[position + 1 : position + 3]
            assert len(target) == 2


def test_rewards_by_hand():
    log_probs = torch.tensor([[-1.0, -2.0], [-5.0, 0.0]])
    hits = torch.tensor([[True, False], [True, False]])
    targets = torch.tensor([[7, 8], [7, -100]])
    scores = TargetScores(log_probs, hits)
    rewards = {
        kind: compute_rewards(RewardConfig(kind), scores, targets, torch.full((2, 2), -4.0))
        for kind in ("answer_probability", "exact_match", "prediction_gain")
    }
    assert rewards["answer_probability"].tolist() == pytest.approx([0.0498, 0.0067], abs=1e-4)
    assert rewards["exact_match"].tolist() == [0, 1]
    # Both clipped at -3: 2 + 1 nats gained; and -3 against -3.
    assert rewards["prediction_gain"].tolist() == [3, 0]


def test_the_scorer_is_an_average_that_takes_each_version_once(tmp_path):
    average = Scorer(0.9)
    average.advance({"w": torch.tensor([1.0])}, 0)
    second = average.advance({"w": torch.tensor([2.0])}, 1)
    assert second["scorer.w"].item() == pytest.approx(1.1)
    assert average.advance({"w": torch.tensor([9.0])}, 1)["scorer.w"].item() == pytest.approx(1.1)
    average.save(tmp_path)
    again = Scorer(0.9)
    again.load(tmp_path, 1)
    ends = [a.advance({"w": torch.tensor([3.0])}, 2)["scorer.w"].item() for a in (average, again)]
    assert ends[0] == ends[1] == pytest.approx(1.29)


def rewarded(*rewards: float) -> Episode:
    """An episode of empty thoughts that fared so."""
    none = torch.zeros(len(rewards), dtype=torch.int64)
    blank = torch.zeros(len(rewards), 0)
    thoughts = Thoughts(none, none, blank.long(), none, none.bool(), blank)
    item = question_like_items(1)[0]
    return Episode(item, thoughts, blank.long(), torch.tensor(rewards), torch.zeros(len(rewards)))


def test_episodes_that_tell_nothing_apart_are_not_learned_from():
    alike, close, apart = rewarded(0.5, 0.5), rewarded(0.5, 0.52), rewarded(0.1, 0.9)
    two_groups = rewarded(0.0, 0.0, 0.2, 0.5)  # the same from group to group is no difference
    level = rewarded(0.0, 0.0, 0.9, 0.9)
    episodes = [alike, apart, close, level, two_groups]

    def kept(least: int = 1, **changes) -> list[int]:
        config = EpisodeConfig(thoughts=2, **changes)
        numbers = {id(episode): number for number, episode in enumerate(episodes)}
        return [numbers[id(episode)] for episode in told_apart(episodes, config, least)]

    assert kept(min_spread=0.0) == [0, 1, 2, 3, 4]
    assert kept(min_spread=0.1) == [1, 4]
    assert kept(min_spread=0.01) == [1, 2, 4]
    # No micro-batch is left empty.
    assert kept(min_spread=2.0) == [1]
    assert kept(3, min_spread=2.0) == [1, 2, 4]
    with pytest.raises(InputError, match="min_spread is -1"):
        EpisodeConfig(min_spread=-1)


def test_each_thought_is_credited_with_its_own_rewards():
    """Two thoughts of one token an episode, whose rewards name the episode."""
    config = EpisodeConfig(
        episodes=4, batch_size=4, thoughts=2, episodes_per_request=1, micro_batches=2
    )
    plan = EpisodePlan(question_like_items(4), config)

    def rollout(number: int) -> Rollout:
        ends = torch.tensor([plan.payload(number)[0].positions[0]] * 2)
        thoughts = Thoughts(
            rows=torch.zeros(2, dtype=torch.int64),
            positions=ends,
            tokens=torch.tensor([[20 + number], [30 + number]]),
            lengths=torch.ones(2, dtype=torch.int64),
            closed=torch.zeros(2, dtype=torch.bool),
            log_probs=torch.tensor([[-1.0], [-2.0]]) * (number + 1),
        )
        outcome = {"targets": torch.tensor([[7], [7]]), "rewards": torch.tensor([0.0, number + 1])}
        return Rollout(number, 0, "", {**asdict(thoughts), **outcome}, 0.0)

    pool = SimpleNamespace(
        publish=lambda _version, _weights: None,
        take=lambda _step: [rollout(number) for number in range(4)],
    )
    engine = SimpleNamespace(
        whole_model=lambda: nullcontext(torch.nn.Linear(1, 1)), takes_fewer=True
    )
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    tags = Tags.from_tokenizer(thinking_pair()[1])
    source = EpisodeBatches(plan, pool, engine, Advantages("rloo"), config, tags, world, 1, 16)
    found = {}
    for batch in next(source.steps(0)).micro_batches:
        written = batch["labels"][batch["kind"] == 1].tolist()
        pairs = zip(batch["advantages"].tolist(), batch["behaviour"].tolist(), strict=True)
        found |= dict(zip(written, pairs, strict=True))
    worse = {20 + n: (-(n + 1.0), -(n + 1.0)) for n in range(4)}
    better = {30 + n: (n + 1.0, -2.0 * (n + 1)) for n in range(4)}
    assert found == worse | better
