"""Everywhere a torch optimizer goes: beside torch.optim.AdamW, equal or a stated refusal."""

import inspect
from pathlib import Path

import pytest
from torch.optim import lr_scheduler

import distforge.optim
from tests.unit.optim.conformance import HEADER, SCENARIOS, SCHEDULERS, compare

TABLE = Path(distforge.optim.__file__).with_name("CONFORMANCE.md")


@pytest.mark.parametrize("name", SCENARIOS)
def test_muon_grokfast_does_what_adamw_does_and_the_table_says_so(name):
    row = compare(name)
    assert f"| {row.name} | {row.adamw} | {row.muon_grokfast} |\n" in TABLE.read_text("utf-8")


def test_the_table_has_these_rows_and_no_others():
    text = TABLE.read_text("utf-8")
    assert text.startswith(HEADER)
    assert len(text.removeprefix(HEADER).splitlines()) == len(SCENARIOS)


def test_every_scheduler_of_torch_is_among_them():
    made = {
        name
        for name, kind in inspect.getmembers(lr_scheduler, inspect.isclass)
        if issubclass(kind, lr_scheduler.LRScheduler) and kind is not lr_scheduler.LRScheduler
    }
    assert made - {"_LRScheduler"} <= set(SCHEDULERS)
