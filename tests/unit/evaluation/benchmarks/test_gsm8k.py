"""GSM8K: which answers count, by lm-evaluation-harness's two readings, and which files are read."""

import pyarrow
import pyarrow.parquet
import pytest

from distforge.data.rows import read_rows
from distforge.errors import InputError
from distforge.evaluation.benchmarks.gsm8k import GSM8K, Problem, judge
from tests.benchmark_files import GSM8K_ROWS, Scripted, write_lines


@pytest.mark.parametrize(
    "answer,text,strict,flexible",
    [
        ("so\n#### 72", " 48 and 24.\n#### 72", True, True),
        ("so\n#### 72", "\nAnswer: 72", False, True),
        ("so\n#### 72", " 72 clips, not 71", False, False),
        # The strict reading takes the first mark, the flexible one the last number.
        ("so\n#### 72", "#### 72 or #### 73", True, False),
        ("so\n#### 72", "", False, False),
        ("so\n#### 72", "seventy-two", False, False),
        # Commas, currency and a full stop at the end make no difference; other digits do.
        ("so\n#### 1,250", "#### 1250.", True, True),
        ("so\n#### 1250", "It costs $1,250.", False, True),
        ("so\n#### 1250", "#### 12500", False, False),
        ("so\n#### -2", "#### -2", True, True),
        ("so\n#### -2", "#### 2", False, False),
        ("so\n#### 5", "the answer is 5", False, True),
        ("so\n#### 0.5", "#### 0.5", True, True),
    ],
)
def test_an_answer_is_read_strictly_and_flexibly(answer, text, strict, flexible):
    judged = judge(Problem("?", answer), "Question: ?\n", text)
    assert judged.right == {"strict": strict, "flexible": flexible}
    assert (judged.question, judged.asked, judged.written) == ("?", "Question: ?\n", text)
    assert (judged.answer == judged.expected) == flexible
    assert repr(judged.answer) in judged.why or judged.answer is None


def test_a_question_comes_after_solved_examples_of_the_training_split(tmp_path):
    write_lines(tmp_path / "train.jsonl", GSM8K_ROWS[1:])
    write_lines(tmp_path / "test.jsonl", GSM8K_ROWS[:1])
    model = Scripted("#### 72")
    (found,) = GSM8K(str(tmp_path), limit=0, shots=1).judge(model, [0])
    assert found.right == {"strict": True, "flexible": True}
    assert found.asked == model.asked[0]
    assert found.why == "after the first '####': '72'; the last number: '72'"
    assert model.asked == [
        "Question: A house costs 1,000 and a shed 250. Both?\nAnswer: 1000+250\n#### 1,250\n\n"
        "Question: Natalia sold 48 clips and then half as many. How many?\n"
    ]


def test_the_end_of_a_single_file_serves_as_examples_and_is_not_asked(tmp_path):
    path = write_lines(tmp_path / "any.jsonl", GSM8K_ROWS)
    benchmark = GSM8K(str(path), limit=0, shots=1)
    assert [p.question for p in benchmark.questions] == [r["question"] for r in GSM8K_ROWS[:2]]
    assert len(GSM8K(str(path), limit=1, shots=1).questions) == 1


def test_parquet_holds_the_same_as_lines(tmp_path):
    lines = write_lines(tmp_path / "test.jsonl", GSM8K_ROWS)
    table = pyarrow.Table.from_pylist(GSM8K_ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "other.parquet")
    one = GSM8K(str(lines), limit=0, shots=0)
    other = GSM8K(str(tmp_path / "other.parquet"), limit=0, shots=0)
    assert one.questions == other.questions


def test_the_folder_as_published_is_read_once(tmp_path):
    """It holds every split a second time, in Socratic form; and names only end with a split's."""
    write_lines(tmp_path / "test.jsonl", GSM8K_ROWS[:2])
    for other in ("test_socratic", "train_socratic", "latest", "contest"):
        write_lines(tmp_path / f"{other}.jsonl", GSM8K_ROWS)
    write_lines(tmp_path / "train.jsonl", GSM8K_ROWS[2:])
    benchmark = GSM8K(str(tmp_path), limit=0, shots=1)
    assert [p.question for p in benchmark.questions] == [r["question"] for r in GSM8K_ROWS[:2]]
    write_lines(tmp_path / "main_test.jsonl", GSM8K_ROWS)
    with pytest.raises(InputError, match=r"split test: main_test\.jsonl, test\.jsonl; keep one"):
        GSM8K(str(tmp_path), limit=0, shots=0)


def test_the_parts_of_the_hub_and_saved_datasets_are_read_in_order(tmp_path):
    hub, saved = tmp_path / "hub", tmp_path / "saved"
    for directory in (hub, saved / "test", saved / "train"):
        directory.mkdir(parents=True)
    for number, row in enumerate(GSM8K_ROWS):
        part = pyarrow.Table.from_pylist([row])
        pyarrow.parquet.write_table(part, hub / f"test-0000{number}-of-00003.parquet")
    (saved / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split in ("train", "test"):
        table = pyarrow.Table.from_pylist(GSM8K_ROWS)
        with (
            pyarrow.OSFile(str(saved / split / "data-0.arrow"), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table)
        state = '{"_data_files": [{"filename": "data-0.arrow"}]}'
        (saved / split / "state.json").write_text(state)
    for path in (hub, saved):
        found = GSM8K(str(path), limit=0, shots=0).questions
        assert [p.question for p in found] == [row["question"] for row in GSM8K_ROWS]
    assert len(GSM8K(str(saved), limit=1, shots=2).questions) == 1


def test_examples_give_way_to_the_question_and_a_question_that_does_not_fit_is_none(tmp_path):
    path = write_lines(tmp_path / "any.jsonl", GSM8K_ROWS)
    benchmark = GSM8K(str(path), limit=0, shots=2)
    question = f"Question: {GSM8K_ROWS[0]['question']}\n"
    last = "Question: It was 3 and fell by 5. Now?\nAnswer: 3-5=-2\n#### -2\n\n"
    model = Scripted("#### 72", room=len(last + question))
    assert [one.right["strict"] for one in benchmark.judge(model, [0])] == [True]
    assert model.asked == [last + question]
    tight = Scripted("#### 72", room=len(question) - 1)
    (untold,) = benchmark.judge(tight, [0])
    assert (untold.asked, untold.right) == (None, {})
    assert "no room" in untold.why
    assert tight.asked == []


@pytest.mark.parametrize(
    "content,message",
    [
        ('{"question": "?", "answer": "no mark"}\n', "no row of GSM8K"),
        ('{"text": "?"}\n', "no row of GSM8K"),
        ("[1]\n", "line 1: expected a JSON object"),
        ("{oops\n", "line 1: not valid JSON"),
        ("", "gives 0 questions"),
    ],
)
def test_what_is_no_gsm8k_is_refused_by_its_place(tmp_path, content, message):
    path = tmp_path / "test.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        GSM8K(str(path), limit=0, shots=0)
    assert str(path) in str(error.value)


def test_a_line_ends_at_a_line_feed_alone(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "a\u2028b", "answer": "#### 7"}\n', encoding="utf-8")
    [(row, where)] = read_rows(path)
    assert row["question"] == "a\u2028b"
    assert where == f"{path}, line 1"
    GSM8K(str(path), limit=0, shots=0)


def test_a_missing_path_a_false_parquet_and_too_few_examples_are_refused(tmp_path):
    with pytest.raises(InputError, match="no benchmark at"):
        GSM8K(str(tmp_path / "absent"), limit=0, shots=0)
    (tmp_path / "test.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="not a readable Parquet"):
        GSM8K(str(tmp_path / "test.parquet"), limit=0, shots=0)
    path = write_lines(tmp_path / "test.jsonl", GSM8K_ROWS)
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(InputError, match="3 questions and 0 solved examples"):
        GSM8K(str(tmp_path), limit=0, shots=2)
    with pytest.raises(InputError, match="0 questions and 3 solved examples"):
        GSM8K(str(path), limit=0, shots=3)
