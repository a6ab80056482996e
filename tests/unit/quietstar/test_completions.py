"""Completions as a table: what people look at while a run goes on."""

from distforge.quietstar.completions import Completion, as_table


def test_a_column_for_each_function_and_a_row_for_each_answer() -> None:
    completions = [
        Completion("2 + 2?", "4", {"math": 1.0, "short": 0.5}, 1.5, 0.75, True),
        Completion("2 + 2?", "five", {"math": 0.0, "short": None}, 0.0, -0.75, False),
    ]
    columns, rows = as_table(completions)
    assert columns == [
        *("prompt", "completion", "reward of math", "reward of short"),
        *("reward", "advantage", "finished"),
    ]
    assert rows == [
        ["2 + 2?", "4", 1.0, 0.5, 1.5, 0.75, True],
        ["2 + 2?", "five", 0.0, None, 0.0, -0.75, False],
    ]
