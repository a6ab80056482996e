"""ARC: both layouts of its files, and the choice that counts."""

import pytest

from distforge.errors import InputError
from distforge.evaluation.benchmarks.arc import ARC
from tests.benchmark_files import ARC_ROWS, Scripted, write_lines


def rights(found):
    return [one.right for one in found]


def test_the_likeliest_choice_is_taken_as_it_is_and_for_its_length(tmp_path):
    path = write_lines(tmp_path / "test.jsonl", ARC_ROWS)
    nats = {" a rock": -5.9, " a tree": -6.0, " a very long iron bar": -8.0} | {
        " ice": -1.0, " fire": -2.0, " the sun": -3.0, " steam": -4.0}  # fmt: skip
    model = Scripted(nats)
    found = ARC(str(path), limit=0, shots=0).judge(model, [0, 1])
    assert [(one.written, one.answer, one.expected) for one in found] == [
        ("a rock", "a very long iron bar", "a tree"),
        ("ice", "ice", "ice"),
    ]
    assert "'a tree' -6.00, -1.000" in found[0].why
    # -6 / 6 characters is less than -8 / 20, and -1 / 3 is not: the last choices' length tells.
    assert rights(found) == [{"acc": False, "acc_norm": False}, {"acc": True, "acc_norm": True}]
    assert model.asked == ["Question: Which is alive?\n", "Question: Which is cold?\n"]
    nats[" a rock"], nats[" a very long iron bar"] = -7.0, -21.0
    assert rights(ARC(str(path), 1, 0).judge(model, [0])) == [{"acc": True, "acc_norm": True}]
    nats[" a rock"] = -5.9
    assert rights(ARC(str(path), 1, 0).judge(model, [0])) == [{"acc": False, "acc_norm": False}]
    nats[" a rock"], nats[" a very long iron bar"] = -7.0, -8.0
    assert rights(ARC(str(path), 1, 0).judge(model, [0])) == [{"acc": True, "acc_norm": False}]


def test_the_layout_of_the_authors_is_read_as_that_of_the_hub(tmp_path):
    theirs = [
        {
            "id": row["id"],
            "question": {
                "stem": row["question"],
                "choices": [
                    {"text": text, "label": label}
                    for text, label in zip(*row["choices"].values(), strict=True)
                ],
            },
            "answerKey": row["answerKey"],
        }
        for row in ARC_ROWS
    ]
    hub = write_lines(tmp_path / "hub.jsonl", ARC_ROWS)
    authors = write_lines(tmp_path / "ARC-Easy-Test.jsonl", theirs)
    one, other = (ARC(str(path), limit=0, shots=0).questions for path in (hub, authors))
    assert one == other
    assert [q.answer for q in one] == [1, 0]


def test_solved_examples_tell_the_right_choice(tmp_path):
    path = write_lines(tmp_path / "test.jsonl", ARC_ROWS)
    model = Scripted({" a rock": -1.0, " a tree": -1.0, " a very long iron bar": -1.0})
    ARC(str(path), limit=0, shots=1).judge(model, [0])
    shot = "Question: Which is cold?\nAnswer: ice\n\n"
    assert model.asked == [shot + "Question: Which is alive?\n"]


def test_a_question_whose_longest_choice_does_not_fit_is_none_and_the_others_keep_their_places(
    tmp_path,
):
    path = write_lines(tmp_path / "test.jsonl", ARC_ROWS)
    room = len("Question: Which is alive?\n a very long iron bar") - 1
    nats = {" ice": -1.0, " fire": -2.0, " the sun": -3.0, " steam": -4.0}
    found = ARC(str(path), limit=0, shots=0).judge(Scripted(nats, room=room), [0, 1])
    assert rights(found) == [{}, {"acc": True, "acc_norm": True}]
    assert [one.asked is None for one in found] == [True, False]


@pytest.mark.parametrize(
    "change",
    [{"answerKey": "Z"}, {"choices": {"text": ["a"], "label": ["A", "B"]}}, {"choices": None},
     {"choices": {"text": ["", "b"], "label": ["A", "B"]}}],
)  # fmt: skip
def test_what_is_no_arc_is_refused_by_its_place(tmp_path, change):
    path = write_lines(tmp_path / "test.jsonl", [ARC_ROWS[0] | change])
    with pytest.raises(InputError, match=r"test\.jsonl, line 1"):
        ARC(str(path), limit=0, shots=0)
