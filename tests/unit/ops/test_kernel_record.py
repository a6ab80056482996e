"""What is remembered of the kernels, and what is done where nothing can be."""

from __future__ import annotations

import json

import pytest
import torch

from distforge.ops import kernel_record

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel_record.identity.cache_clear()


def test_the_first_answer_stands():
    assert kernel_record.read(CPU) == {}
    assert kernel_record.remember(CPU, {"a": "1", "b": ""}) == {"a": "1", "b": ""}
    assert kernel_record.remember(CPU, {"a": "2", "c": "3"}) == {"a": "1", "b": "", "c": "3"}
    assert kernel_record.read(CPU) == {"a": "1", "b": "", "c": "3"}


def test_another_torch_knows_nothing_and_loses_nothing(monkeypatch):
    kernel_record.remember(CPU, {"a": "1"})
    with monkeypatch.context() as another:
        another.setattr(torch, "__version__", "9.9.9")
        kernel_record.identity.cache_clear()
        assert kernel_record.read(CPU) == {}
        kernel_record.remember(CPU, {"a": "2"})
    assert len(json.loads(kernel_record.path().read_text())) == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"x": 3}', '{"x": {"y": 1}}', "\xff"])
def test_a_record_that_is_none_is_replaced(content):
    kernel_record.path().parent.mkdir()
    kernel_record.path().write_text(content, encoding="latin-1")
    assert kernel_record.read(CPU) == {}
    assert kernel_record.remember(CPU, {"a": "1"}) == {"a": "1"}
    assert kernel_record.read(CPU) == {"a": "1"}


def test_a_home_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kernel_record.remember(CPU, {"a": "1"}) == {"a": "1"}
    assert kernel_record.read(CPU) == {}


def test_the_home_of_a_user_without_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kernel_record.path() == tmp_path / ".cache" / "distforge" / "kernels.json"
