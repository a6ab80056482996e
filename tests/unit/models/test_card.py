"""The card in an exported model: its code does what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from distforge.cli import main
from distforge.models.export import export_model
from distforge.models.vocabulary import add_thinking_tokens
from distforge.rendering.thinking_tokens import THINKING_TOKENS
from tests.foreign_tokenizers import CHATML
from tests.tiny_models import tiny_llama, tiny_tokenizer


@pytest.mark.parametrize("template", ["", CHATML], ids=["plain", "chat"])
def test_the_code_on_the_card_asks_as_distforge_asks(template, tmp_path: Path, capsys):
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer), max_positions=512)
    if template:
        tokenizer.chat_template = template
    export_model(model, tokenizer, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("PATH/TO/THIS/DIRECTORY", str(tmp_path / "model"))
    code = code.replace("YOUR QUESTION", "What is 12 + 34?").replace("=200", "=24")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "card", "exec"), {})
    words = ["ask", str(tmp_path), "--question", "What is 12 + 34?", "--max-new-tokens", "24"]
    capsys.readouterr()
    assert main(words) == 0
    asked = capsys.readouterr().out
    assert printed.getvalue().replace("<eos>", "").strip() == asked.strip()
    assert len(asked) > 4


def test_a_card_names_the_thinking_tokens_that_the_model_has(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer))
    export_model(model, tokenizer, tmp_path / "without")
    add_thinking_tokens(model, tokenizer, THINKING_TOKENS, seed=0)
    export_model(model, tokenizer, tmp_path / "with")
    texts = {d: (tmp_path / d / "README.md").read_text("utf-8") for d in ("with", "without")}
    assert "`<falsify>`" in texts["with"]
    assert "<think>" not in texts["without"]
    assert "(llama, 0.0M parameters)" in texts["without"]
