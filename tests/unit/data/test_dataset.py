"""Rows of token ids: kept in one array, given back as they came in."""

import random
import tracemalloc

import pytest

from distforge.data import Example, ReasoningDataset, make_examples
from distforge.data.dataset import IGNORE_INDEX, TokenRows
from distforge.data.text import completion_text
from distforge.errors import InputError
from distforge.rendering.plain import question_text
from tests.tiny_models import tiny_tokenizer


def test_rows_come_back_as_they_were() -> None:
    rng = random.Random(0)
    rows = [([rng.randrange(2**31) for _ in range(n)], rng.randrange(n)) for n in range(1, 40)]
    kept = TokenRows(iter(rows), [str(n) for n in range(1, 40)])
    assert len(kept) == 39
    for index, (ids, start) in enumerate(rows):
        row = kept[index]
        assert row["input_ids"].tolist() == ids
        assert row["labels"].tolist() == [IGNORE_INDEX] * start + ids[start:]
        assert row["attention_mask"].tolist() == [1] * len(ids)
    assert list(kept.lengths) == list(range(1, 40))
    assert list(kept.target_counts) == [len(ids) - start for ids, start in rows]
    assert kept[-1]["input_ids"].tolist() == rows[-1][0]


def test_a_token_costs_four_bytes() -> None:
    """Between two sizes; an array may have half as much again as it needs."""

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            TokenRows((([1000 + n] * 100, 10) for n in range(count)), ["x"] * count)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert (peak(6000) - peak(1000)) / 5000 < 100 * 4 * 2 + 100


def test_names_strategies_and_what_was_too_long() -> None:
    tokenizer = tiny_tokenizer()
    examples = make_examples(70, 0)
    plain = Example(**{**examples[0].as_dict(), "strategy": "", "checks": ()})
    examples = [plain, *examples[1:]]
    whole = ReasoningDataset(examples, tokenizer, max_length=4000)
    assert list(whole.ids) == [e.id for e in examples]
    assert whole.ids[-1] == examples[-1].id
    assert [whole[n]["strategy"] for n in (0, 5)] == ["", examples[5].strategy]
    told = completion_text(plain.reasoning, plain.answer)
    said = tokenizer(question_text(plain.question) + told, add_special_tokens=False)["input_ids"]
    assert whole[0]["input_ids"].tolist()[-2:] == [said[-1], tokenizer.eos_token_id]
    limit = sorted(whole.lengths)[30]
    part = ReasoningDataset(examples, tokenizer, max_length=limit)
    fits = [length <= limit for length in whole.lengths]
    assert part.too_long == fits.count(False)
    assert list(part.examples) == [e for e, fit in zip(examples, fits, strict=True) if fit]
    with pytest.raises(InputError, match=r"none of 70 examples fits max_length 4.* has \d+ tokens"):
        ReasoningDataset(examples, tokenizer, max_length=4)
