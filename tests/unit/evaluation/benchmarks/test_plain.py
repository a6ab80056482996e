"""A plain model asked benchmarks, against one sequence after another in float64."""

import copy

import pytest
import torch

from distforge.evaluation.benchmarks import BenchmarksConfig, load_benchmarks, measure_benchmarks
from distforge.evaluation.benchmarks.plain import PlainAnswerer
from distforge.training.distributed import World
from tests.benchmark_files import ARC_ROWS, GSM8K_ROWS, Scripted, write_lines
from tests.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ASKED = ["Question: What is 12 + 34?\n", "Question: How many cups?\n"]
ANSWERS = [[" 46", " 4 and then 6", " a cup"], [" two", " 2"]]


def alone(model, text: str, answer: str) -> float:
    start = TOKENIZER(f"{text}Answer:")["input_ids"]
    whole = TOKENIZER(f"{text}Answer:{answer}")["input_ids"]
    log_probs = model(torch.tensor([whole])).logits[0].log_softmax(dim=-1)
    return sum(float(log_probs[i - 1, whole[i]]) for i in range(len(start), len(whole)))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
@torch.no_grad()
def test_likelihoods_are_those_of_each_answer_alone(make, batch_size):
    model = make(len(TOKENIZER))
    found = PlainAnswerer(model, TOKENIZER, 8, batch_size).log_likelihoods(ASKED, ANSWERS)
    exact = copy.deepcopy(model).double()
    for text, answers, nats in zip(ASKED, ANSWERS, found, strict=True):
        assert nats == pytest.approx([alone(exact, text, answer) for answer in answers], abs=1e-4)


@torch.no_grad()
def test_it_writes_greedily_after_the_answers_mark_and_stops():
    model = tiny_llama(len(TOKENIZER))
    answerer = PlainAnswerer(model, TOKENIZER, 12, 2)
    whole = answerer.write(ASKED, ())
    ids = TOKENIZER(f"{ASKED[0]}Answer:")["input_ids"]
    expected = []
    while len(expected) < 12:
        token = int(model(torch.tensor([ids + expected])).logits[0, -1].argmax())
        if token == TOKENIZER.eos_token_id:
            break
        expected.append(token)
    assert whole[0] == TOKENIZER.decode(expected)
    assert len(whole[0]) > 3
    stop = whole[0][2:4]
    assert answerer.write(ASKED, (stop, "never"))[0] == whole[0][: whole[0].index(stop)]


def test_room_is_the_contexts_less_what_is_written():
    model = tiny_llama(len(TOKENIZER), max_positions=40)
    taken = len(TOKENIZER(f"{ASKED[0]}Answer:")["input_ids"])
    assert PlainAnswerer(model, TOKENIZER, 40 - taken, 2).fits(ASKED[0])
    assert not PlainAnswerer(model, TOKENIZER, 41 - taken, 2).fits(ASKED[0])
    answerer = PlainAnswerer(model, TOKENIZER, 8, 2)
    assert answerer.fits(ASKED[0], [" 46"])
    assert not answerer.fits(ASKED[0], [" 46", " 4" * 40])


def test_fractions_count_what_was_too_long_as_wrong(tmp_path):
    gsm8k = write_lines(tmp_path / "gsm8k.jsonl", GSM8K_ROWS)
    arc = write_lines(tmp_path / "arc.jsonl", ARC_ROWS)
    config = BenchmarksConfig(gsm8k=str(gsm8k), arc=str(arc), gsm8k_shots=0)
    benchmarks = load_benchmarks(config)
    room = len(f"Question: {GSM8K_ROWS[1]['question']}\n")
    world = World(0, 0, 1, torch.device("cpu"))
    (scores,) = measure_benchmarks(benchmarks[:1], Scripted("#### -2", room=room), world)
    assert (scores.count, scores.too_long) == (3, 1)
    assert scores.accuracy == scores.measures["strict"].mean == pytest.approx(1 / 3)
    assert 0.06 < scores.measures["strict"].low < 0.07
    (none,) = measure_benchmarks(benchmarks[1:], Scripted({}, room=1), world)
    assert (none.accuracy, none.too_long) == (0.0, 2)
    assert load_benchmarks(BenchmarksConfig()) == []
