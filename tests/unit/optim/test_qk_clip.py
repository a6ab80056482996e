import pytest
import torch

from distforge.errors import InputError
from distforge.optim.qk_clip import clip_factors, count_clipped, scale_heads_


def test_one_key_head_per_query_head_takes_the_root_on_each_side():
    logits = torch.tensor([40.0, 10.0, 160.0])
    query, key = clip_factors(logits, 40.0, 3)
    expected = torch.tensor([1.0, 1.0, 0.5])
    torch.testing.assert_close(query, expected)
    torch.testing.assert_close(key, expected)


def test_grouped_heads_each_get_exactly_what_they_need():
    logits = torch.tensor([80.0, 20.0, 400.0, 160.0, 40.0, -3.0])
    query, key = clip_factors(logits, 40.0, 3)
    product = query * key.repeat_interleave(2)
    gamma = torch.tensor([0.5, 1.0, 0.1, 0.25, 1.0, 1.0])
    torch.testing.assert_close(product, gamma)
    # A group with a head that needs nothing keeps its key; else the key takes the mildest root.
    torch.testing.assert_close(key, torch.tensor([1.0, 0.5, 1.0]))
    assert query.max() <= 1


def test_heads_that_were_not_measured_or_are_negative_are_left_alone():
    logits = torch.tensor([-1e9, 0.0, -torch.inf, torch.inf, torch.nan, 60.0])
    query, key = clip_factors(logits, 30.0, 6)
    expected = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.5**0.5])
    torch.testing.assert_close(query, expected)
    torch.testing.assert_close(key, expected)


@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_logits_of_the_clipped_projections(heads, kv_heads, with_bias):
    generator = torch.Generator().manual_seed(0)
    width, dim, length = 24, 5, 7
    w_q = torch.randn(heads * dim, width, generator=generator)
    w_k = torch.randn(kv_heads * dim, width, generator=generator)
    b_q = torch.randn(heads * dim, generator=generator) if with_bias else None
    b_k = torch.randn(kv_heads * dim, generator=generator) if with_bias else None
    x = torch.randn(length, width, generator=generator)

    def maxima():
        q = x @ w_q.T + (0 if b_q is None else b_q)
        k = x @ w_k.T + (0 if b_k is None else b_k)
        result = []
        for head in range(heads):
            group = head // (heads // kv_heads)
            queries = q[:, head * dim : (head + 1) * dim]
            keys = k[:, group * dim : (group + 1) * dim]
            result.append((queries @ keys.T / dim**0.5).max())
        return torch.stack(result)

    before = maxima()
    threshold = before.sort().values[heads // 2].item() - 1e-3
    original = w_q.clone()
    query, key = clip_factors(before, threshold, kv_heads)
    for rows, factors in ((w_q, query), (b_q, query), (w_k, key), (b_k, key)):
        if rows is not None:
            scale_heads_(rows, factors)
    clipped = count_clipped(before, threshold)
    assert clipped == int((before > threshold).sum())
    assert 0 < clipped < heads or heads == kv_heads == 1
    torch.testing.assert_close(maxima(), before.clamp(max=threshold), rtol=1e-5, atol=1e-5)
    if heads == kv_heads:
        untouched = [h for h in range(heads) if before[h] <= threshold]
        for head in untouched:
            rows = slice(head * dim, (head + 1) * dim)
            assert torch.equal(w_q[rows], original[rows])


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_must_be_positive(threshold):
    with pytest.raises(InputError, match="qk_clip_threshold"):
        clip_factors(torch.ones(2), threshold, 2)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="4 query heads cannot share 3 key heads"):
        clip_factors(torch.ones(4), 1.0, 3)
    with pytest.raises(InputError, match="10 rows cannot belong to 4 heads"):
        scale_heads_(torch.ones(10), torch.ones(4))
