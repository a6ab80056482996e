"""Scores counted by hand on a few generations."""

from dataclasses import replace

import torch

from distforge.data import STRATEGIES, make_examples
from distforge.data.answers import extract_answer
from distforge.evaluation.scoring import (
    answer_questions,
    judge,
    stratified,
    summarize,
    unmarked_note,
)
from distforge.rendering.plain import question_text
from distforge.training.distributed import World
from tests.tiny_models import tiny_llama, tiny_tokenizer

EXAMPLES = make_examples(140, 0)


def of(strategy: str, count: int) -> list:
    return [e for e in EXAMPLES if e.strategy == strategy][:count]


def test_extract_answer_takes_the_last() -> None:
    assert extract_answer("Answer: 3\nno, wait\nAnswer: 4 \nmore") == "4 \nmore"
    assert extract_answer("nothing") is None
    assert extract_answer("Answer:") == ""


def test_judge() -> None:
    example = of("bayesian_rationalist", 1)[0]
    top, _, bottom = example.answer.partition("/")
    doubled = f"{2 * int(top)}/{2 * int(bottom)}"
    assert judge(example, f"<think></think>\nAnswer: {doubled}").correct
    assert not judge(example, example.answer).correct
    assert not judge(example, "Answer: 1/999").correct


def test_who_marks_no_answer_is_told() -> None:
    example = of("bayesian_rationalist", 1)[0]
    marked, bare = judge(example, "Answer: 1/999"), judge(example, f"It is {example.answer}.")
    assert unmarked_note([marked]) == ""
    assert unmarked_note([marked, bare, bare]).startswith("2 of 3 generations are wrong because")


def test_counts_by_hand() -> None:
    doubt, mece = of("self_doubt", 4), of("mece_decomposition", 2)
    texts = [f"<think><doubt></think>\nAnswer: {e.answer}" for e in doubt[:3]]
    texts += ["Answer: -1"]
    texts += [f"<think><mece></think>\nAnswer: {mece[0].answer}", "<doubt>"]
    judged = [judge(e, t) for e, t in zip([*doubt, *mece], texts, strict=True)]
    scores = summarize(judged)
    assert scores.count == 6
    assert scores.accuracy_overall == 4 / 6
    assert scores.accuracy["self_doubt"] == 3 / 4
    assert scores.accuracy["mece_decomposition"] == 1 / 2
    # What no question names has no score.
    assert "chain_of_thought" not in scores.accuracy
    assert scores.token_usage["thinking"] == 4 / 6
    # Given their strategy: the <doubt> in a mece answer counts for nobody.
    assert scores.token_usage["doubt"] == 3 / 4
    assert scores.token_usage["mece"] == 1 / 2
    assert "falsify" not in scores.token_usage


def test_questions_without_a_strategy_have_one_number() -> None:
    plain = [replace(e, strategy="") for e in EXAMPLES[:4]]
    judged = [judge(e, f"Answer: {e.answer}", "asked") for e in plain[:3]] + [judge(plain[3], "?")]
    scores = summarize(judged)
    assert (scores.accuracy_overall, scores.accuracy, scores.token_usage) == (0.75, {}, {})
    right, wrong = judged[0].as_dict(), judged[3].as_dict()
    assert (right["prompt"], right["verdict"], wrong["verdict"]) == ("asked", "right", "wrong")
    assert (right["answer"], right["expected"]) == (plain[0].answer, plain[0].answer)
    assert wrong["answer"] is None
    assert "gives no answer" in wrong["why"]
    mixed = stratified([*plain, *of("self_doubt", 9)], 6)
    assert [e.strategy for e in mixed] == ["self_doubt"] * 3 + [""] * 3


def test_stratified_is_even() -> None:
    chosen = stratified(EXAMPLES, 14)
    assert [sum(e.strategy == s for e in chosen) for s in STRATEGIES] == [2] * 7


def test_ranks_together_say_what_one_says() -> None:
    """Two worlds of half the questions each, joined by hand, against a world of one."""

    class Half(World):
        def gather_objects(self, value: list) -> list:
            other = {0: 1, 1: 0}[self.rank]
            shares[self.rank] = value
            return (
                [shares.get(0, [""] * 4), shares.get(1, [""] * 3)]
                if other in shares
                else [value if rank == self.rank else [""] * (4 - rank) for rank in (0, 1)]
            )

    shares: dict[int, list] = {}
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer))
    examples = [e for e in EXAMPLES if len(tokenizer.encode(question_text(e.question))) < 100][:7]

    def ask(world: World) -> list[str]:
        told = answer_questions(model, tokenizer, examples, world, max_new_tokens=8, batch_size=2)
        return [answered.text for answered in told]

    alone = ask(World(0, 0, 1, torch.device("cpu")))
    ask(Half(0, 0, 2, torch.device("cpu")))
    assert ask(Half(1, 1, 2, torch.device("cpu"))) == alone
