"""Every estimator against the exact gradient of a policy small enough to enumerate.

The policy has 3 tokens and writes thoughts of 2: 9 thoughts in all. J is the expected reward.
"""

import itertools
from typing import get_args

import pytest
import torch

from distforge.errors import InputError
from distforge.quietstar.advantages import Advantages
from distforge.quietstar.config import Baseline
from distforge.quietstar.objective import (
    divergence_to_go,
    effective_sample_fraction,
    exact_kl,
    k1_kl,
    policy_loss,
)
from distforge.thinking.sampling import entropy

TOKENS, LENGTH, GROUP = 3, 2, 4
THOUGHTS = torch.tensor(list(itertools.product(range(TOKENS), repeat=LENGTH)))


@pytest.fixture
def policy():
    """Logits of the first token (row 0) and of the second given the first (rows 1 to 3)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1 + TOKENS, TOKENS, generator=generator, dtype=torch.float64)


@pytest.fixture
def rewards():
    """Of the nine thoughts: mostly small, one large, as gains are."""
    return torch.tensor([0.0, 0.1, 0.0, 0.05, 1.0, 0.0, 0.2, 0.0, -0.3], dtype=torch.float64)


def token_log_probs(logits: torch.Tensor, thoughts: torch.Tensor) -> torch.Tensor:
    """(N, 2) log-probabilities of (N, 2) thoughts."""
    table = logits.log_softmax(dim=-1)
    return torch.stack([table[0, thoughts[:, 0]], table[1 + thoughts[:, 0], thoughts[:, 1]]], dim=1)


def exact_gradient(logits: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """Of J, by enumeration."""
    leaf = logits.clone().requires_grad_()
    probabilities = token_log_probs(leaf, THOUGHTS).sum(dim=1).exp()
    (gradient,) = torch.autograd.grad((probabilities * rewards).sum(), leaf)
    return gradient


def sampled_gradients(
    policy: torch.Tensor,
    rewards: torch.Tensor,
    advantages_of,
    *,
    behaviour: torch.Tensor | None = None,
    batches: int = 40,
    groups: int = 2500,
    max_importance: float = 1e9,
) -> torch.Tensor:
    """(batches, ...) ascent directions, each the mean over ``groups`` groups drawn at random."""
    generator = torch.Generator().manual_seed(1)
    source = policy if behaviour is None else behaviour
    drawn_from = token_log_probs(source, THOUGHTS).sum(dim=1).exp()
    found = []
    for _ in range(batches):
        index = torch.multinomial(drawn_from, groups * GROUP, replacement=True, generator=generator)
        thoughts = THOUGHTS[index]
        advantages = advantages_of(rewards[index].view(groups, GROUP)).reshape(-1, 1)
        leaf = policy.clone().requires_grad_()
        loss = policy_loss(
            token_log_probs(leaf, thoughts),
            token_log_probs(source, thoughts),
            advantages,
            max_importance=max_importance,
        )
        (gradient,) = torch.autograd.grad(loss.sum() / len(index), leaf)
        found.append(-gradient)
    return torch.stack(found)


def z_scores(sampled: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How many standard errors the mean of the samples is off, by element."""
    error = sampled.std(dim=0) / len(sampled) ** 0.5
    return (sampled.mean(dim=0) - expected).abs() / error


# What each baseline's gradient is, in parts of the true one.
SCALE = {"rloo": 1.0, "ema": 1.0, "group_mean": (GROUP - 1) / GROUP}


@pytest.mark.parametrize("baseline", sorted(SCALE))
def test_bias_is_within_three_standard_errors(policy, rewards, baseline):
    expected = exact_gradient(policy, rewards) * SCALE[baseline]
    sampled = sampled_gradients(policy, rewards, Advantages(baseline))
    # Twelve elements in three tests: 3 standard errors are exceeded by chance in 9% of seeds.
    assert z_scores(sampled, expected).max() < 3


def test_global_std_scales_the_gradient_alone(policy, rewards):
    probabilities = token_log_probs(policy, THOUGHTS).sum(dim=1).exp()
    variance = (probabilities * rewards**2).sum() - (probabilities * rewards).sum() ** 2
    # Of a reward less the mean of G - 1 others: the variance of both.
    spread = (variance * GROUP / (GROUP - 1)).sqrt()
    expected = exact_gradient(policy, rewards) / spread
    assert (
        z_scores(sampled_gradients(policy, rewards, Advantages("reinforce_pp")), expected).max() < 3
    )


def test_the_published_relu_is_biased(policy, rewards):
    sampled = sampled_gradients(policy, rewards, Advantages("quietstar_relu"))
    exact = exact_gradient(policy, rewards)
    # Biased at any scale: compared at the one that fits best.
    scale = (sampled.mean(dim=0) * exact).sum() / (exact * exact).sum()
    assert z_scores(sampled, exact * scale).max() > 10


def test_importance_weights_correct_a_stale_policy(policy, rewards):
    """Of the first token, whose weight is that of all that it depends on: then it is exact."""
    stale = policy + 0.3 * torch.randn(policy.shape, generator=torch.Generator().manual_seed(2))
    stale[1:] = policy[1:]
    expected = exact_gradient(policy, rewards)
    corrected = sampled_gradients(policy, rewards, Advantages("rloo"), behaviour=stale)
    expected_first = expected[0]
    sampled_first = corrected[:, 0]
    error = sampled_first.std(dim=0) / len(sampled_first) ** 0.5
    # RLOO's baseline is the stale policy's mean: still independent of the thought, so unbiased.
    assert ((sampled_first.mean(dim=0) - expected_first).abs() / error).max() < 3


def test_weights_are_cut_from_above():
    current = torch.zeros(3, requires_grad=True)
    behaviour = torch.tensor([0.0, -1.0, -10.0])
    loss = policy_loss(current, behaviour, torch.ones(3), max_importance=2.0)
    assert torch.allclose(loss.detach(), torch.tensor([-1.0, -2.0, -2.0]))


KL = 0.7


def divergence(table: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL of whole thoughts, by enumeration; differentiable in the log-probabilities ``table``."""
    rows = (table.exp() * (table - reference)).sum(dim=-1)
    return rows[0] + (table[0].exp() * rows[1:]).sum()


def kl_gradients(policy, reference, estimator: str, *, to_go: bool = True) -> torch.Tensor:
    """(batches, ...) descent directions of ``KL`` times the divergence, as the loss makes them."""
    generator = torch.Generator().manual_seed(5)
    drawn_from = token_log_probs(policy, THOUGHTS).sum(dim=1).exp()
    found, groups = [], 2500
    for _ in range(40):
        index = torch.multinomial(drawn_from, groups * GROUP, replacement=True, generator=generator)
        thoughts = THOUGHTS[index]
        leaf = policy.clone().requires_grad_()
        states = torch.stack([torch.zeros_like(thoughts[:, 0]), 1 + thoughts[:, 0]], dim=1)
        table = leaf.log_softmax(dim=-1)[states].flatten(0, 1)
        own = table.gather(-1, thoughts.reshape(-1, 1))[:, 0]
        expected = reference[states].flatten(0, 1)
        exact = estimator == "exact"
        cost = (
            exact_kl(table, expected)
            if exact
            else k1_kl(own.detach(), expected.gather(-1, thoughts.reshape(-1, 1))[:, 0])
        )
        owner = torch.arange(len(index)).repeat_interleave(LENGTH)
        group = torch.arange(groups).repeat_interleave(GROUP)
        later = divergence_to_go(cost.detach(), owner, group, own=not exact) * to_go
        loss = policy_loss(own, own.detach(), -KL * later, max_importance=2.0).sum()
        if exact:
            loss = loss + KL * cost.sum()
        (gradient,) = torch.autograd.grad(loss / len(index), leaf)
        found.append(gradient)
    return torch.stack(found)


@pytest.fixture
def reference() -> torch.Tensor:
    logits = torch.randn(1 + TOKENS, TOKENS, generator=torch.Generator().manual_seed(9)).double()
    return logits.log_softmax(dim=-1)


def enumerated(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    leaf = policy.clone().requires_grad_()
    whole = KL * divergence(leaf.log_softmax(dim=-1), reference)
    (gradient,) = torch.autograd.grad(whole, leaf)
    return gradient


@pytest.mark.parametrize("estimator", ["exact", "k1"])
def test_the_divergence_of_whole_thoughts_has_its_whole_gradient(policy, reference, estimator):
    sampled = kl_gradients(policy, reference, estimator)
    assert z_scores(sampled, enumerated(policy, reference)).max() < 3


def test_without_what_a_token_leads_to_the_divergence_is_biased(policy, reference):
    sampled = kl_gradients(policy, reference, "exact", to_go=False)
    assert z_scores(sampled, enumerated(policy, reference))[0].max() > 10


def test_what_all_thoughts_of_a_group_have_to_come_pushes_none(policy):
    costs = torch.full((6,), 0.3)
    owner, group = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0])
    assert not divergence_to_go(costs, owner, group, own=True).any()


def test_divergence_to_come_by_hand():
    """Thoughts of 3, 1 and 0 tokens at one place, and one alone at another."""
    costs = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    owner, group = torch.tensor([0, 0, 0, 1, 3, 3]), torch.tensor([0, 0, 0, 1])
    # To come: 7, 6, 4 of the first, 8 of the second, 0 of the third; alone, nothing is compared.
    with_own = divergence_to_go(costs, owner, group, own=True)
    assert with_own.tolist() == [7 - 8 / 2, 6, 4, 8 - 7 / 2, 48, 32]
    without = divergence_to_go(costs, owner, group, own=False)
    assert without.tolist() == [6, 4, 0, 0 - 6 / 2, 32, 0]


def test_exact_kl_is_the_mean_of_k1(policy):
    reference = torch.randn(TOKENS, dtype=torch.float64).log_softmax(dim=-1)
    current = policy[0].log_softmax(dim=-1)
    mean = (current.exp() * k1_kl(current, reference)).sum()
    assert torch.allclose(exact_kl(current, reference), mean)


def test_masked_tokens_cost_neither_entropy_nor_kl():
    logits = torch.tensor([1.0, 1.0, -torch.inf], requires_grad=True)
    log_probs = logits.log_softmax(dim=-1)
    assert torch.isclose(entropy(log_probs), torch.tensor(2.0).log())
    assert exact_kl(log_probs, log_probs.detach()) == 0
    (entropy(log_probs) + exact_kl(log_probs, log_probs.detach())).backward()
    assert logits.grad.isfinite().all()


def test_effective_sample_fraction_by_hand():
    assert effective_sample_fraction(4.0, 4.0, 4) == 1
    assert effective_sample_fraction(1.0, 1.0, 4) == 0.25
    assert effective_sample_fraction(0.0, 0.0, 4) == 0


@pytest.mark.parametrize("baseline", sorted(set(get_args(Baseline)) - {"ema"}))
def test_equal_rewards_push_nowhere(baseline):
    assert not Advantages(baseline)(torch.full((3, 4), 0.7)).abs().gt(1e-6).any()


@pytest.mark.parametrize("baseline", sorted(set(get_args(Baseline)) - {"ema"}))
def test_a_group_of_one_is_refused(baseline):
    with pytest.raises(InputError, match="at least 2 thoughts"):
        Advantages(baseline)(torch.ones(3, 1))


def test_the_running_mean_is_that_of_earlier_batches():
    """Without it the gradient would be unbiased too, but every good reward would push up."""
    advantages = Advantages("ema", ema_decay=0.5)
    advantages(torch.tensor([[1.0, 3.0]]))
    assert advantages(torch.tensor([[4.0, 2.0]])).tolist() == [[2.0, 0.0]]
    assert advantages(torch.tensor([[2.5, 5.0]])).tolist() == [[0.0, 2.5]]


def test_the_running_mean_survives_a_checkpoint():
    first = Advantages("ema")
    first(torch.ones(2, 2))
    first(torch.zeros(2, 2))
    second = Advantages("ema")
    second.load_state_dict(first.state_dict())
    rewards = torch.tensor([[0.0, 1.0]])
    assert torch.equal(first(rewards), second(rewards))


def test_names_that_people_know():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    assert torch.equal(Advantages("dr_grpo")(rewards), centred)
    # A standard deviation of 1 / sqrt(3) in the first group, of 0 in the second.
    expected = torch.tensor([[1.0, -1.0, -1.0, 1.0], [0.0] * 4]) * 3**0.5 / 2
    assert torch.allclose(Advantages("grpo")(rewards), expected, atol=1e-3)
