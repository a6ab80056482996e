"""What is found out about a chat template by rendering with it."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from distforge.errors import InputError
from distforge.rendering import Asked, Renderer
from distforge.rendering.template import ChatTemplate, pin_date, pinned
from tests.foreign_tokenizers import FOREIGN


def test_the_date_is_the_same_every_day() -> None:
    tokenizer = FOREIGN["llama3"]()
    message = [{"role": "user", "content": "7?"}]
    today = tokenizer.apply_chat_template(message, tokenize=False)
    assert "Today Date: 26 Jul 2024\n" not in today
    text = ChatTemplate(tokenizer).render(message, generation=False)
    assert "Today Date: 26 Jul 2024\n" in text
    head, _, tail = text.partition("26 Jul 2024")
    assert today.startswith(head)
    assert today.endswith(tail)


def test_the_fixed_date_goes_with_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = FOREIGN["llama3"]()
    wanted = Renderer(tokenizer).prompts([Asked("7?")])[0]
    assert pin_date(tokenizer)
    assert not pin_date(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    message = [{"role": "user", "content": "7?"}]
    ids = loaded.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
    assert ids == wanted == Renderer(loaded).prompts([Asked("7?")])[0]


def test_every_format_of_a_date_is_fixed_and_other_templates_stay() -> None:
    tokenizer = FOREIGN["llama3"]()
    tokenizer.chat_template = (
        "\n{{ strftime_now('%Y-%m-%d') }} {{ strftime_now(\"%A\") }} {% set f = '%d' %}"
        "{{ strftime_now(f) }} {{ messages[0]['content'] }}"
    )
    text = ChatTemplate(tokenizer).render([{"role": "user", "content": "7?"}], generation=True)
    assert text == "\n2024-07-26 Friday 2024-07-26 7?"
    assert pinned("{{ bos_token }}") == "{{ bos_token }}"
    assert not pin_date(FOREIGN["gpt2"]())
    tokenizer.chat_template = {"default": "{{ strftime_now('%d') }}", "rag": "a"}
    assert pin_date(tokenizer)
    assert tokenizer.apply_chat_template([{"role": "user"}], tokenize=False) == "26"


@pytest.mark.parametrize(
    "name,expected",
    [("gemma", False), ("chatml", True), ("qwen3", True), ("llama3", True), ("r1", True)],
)
def test_whether_there_is_a_system_role(name: str, expected: bool) -> None:
    assert ChatTemplate(FOREIGN[name]()).has_system_role is expected


def test_a_template_that_drops_the_system_message_has_no_such_role() -> None:
    tokenizer = FOREIGN["chatml"]()
    tokenizer.chat_template = (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>"
        "{% endfor %}"
    )
    assert not ChatTemplate(tokenizer).has_system_role
    ids = Renderer(tokenizer).prompts([Asked("b", "a")])[0]
    assert tokenizer.decode(ids) == "<|im_start|>a\nb<|im_end|>"


def test_without_an_end_of_turn_the_eos_ends_it() -> None:
    tokenizer = FOREIGN["chatml"]()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    renderer = Renderer(tokenizer)
    assert renderer.end == tokenizer.eos_token_id
    prompt, told = renderer.prompts([Asked("7?")])[0], renderer.completions([" 7"])[0]
    assert tokenizer.decode(prompt + told) == "user: 7?\nassistant: 7<|im_end|>"


def test_a_template_that_says_nothing_of_the_user_is_refused() -> None:
    tokenizer = FOREIGN["chatml"]()
    tokenizer.chat_template = "hello"
    with pytest.raises(InputError, match="leaves out what the user says"):
        Renderer(tokenizer)


def test_a_broken_template_is_an_input_error() -> None:
    tokenizer = FOREIGN["chatml"]()
    tokenizer.chat_template = "{% for m in messages %}"
    with pytest.raises(InputError, match="refuses a conversation of the roles user: "):
        Renderer(tokenizer)
