"""The rows of facts, and when two verdicts are the same."""

from __future__ import annotations

import pytest
from bench_agreement import CASES, agreement, facts

from distforge.evaluation.benchmarks.arc import ARC
from tests.benchmark_files import write_lines


def test_facts_are_rows_of_arc(tmp_path) -> None:
    rows = facts(64)
    assert facts(64) == rows
    questions = ARC(str(write_lines(tmp_path / "test.jsonl", rows)), limit=0, shots=0).questions
    assert len(questions) == 64
    assert {len(question.choices) for question in questions} == {3, 4, 5}
    assert {row["answerKey"] for row in rows} >= {"A", "B", "C", "1", "2"}


def test_a_question_agrees_when_every_measure_does() -> None:
    mine = [
        {"strict": True, "flexible": True, "answered": " 7"},
        {"strict": False, "flexible": True, "answered": " 8"},
    ]
    peer = [{**mine[0], "asked": "?", "answered": " 7!"}, {**mine[1], "strict": True}]
    assert agreement(CASES[0], mine, mine).ratio == 1.0
    row = agreement(CASES[0], mine, peer)
    assert (row.ours, row.peer_value, row.ratio) == (1, 2, 0.5)
    assert "1 right by strict, 2 right by flexible, 1 texts the same" in row.work
    with pytest.raises(ValueError, match="shorter"):
        agreement(CASES[0], mine, peer[:1])
