"""The ids of conversations, held against what plain transformers makes of them."""

import pytest
from transformers import PreTrainedTokenizerFast

from distforge.errors import InputError
from distforge.models.vocabulary import add_thinking_tokens
from distforge.rendering import Asked, Renderer
from distforge.rendering.plain import question_text
from distforge.rendering.thinking_tokens import THINKING_TOKENS
from tests.foreign_tokenizers import FOREIGN, rows, stop_ids
from tests.tiny_models import tiny_llama, tiny_tokenizer

TEMPLATED = [name for name in FOREIGN if FOREIGN[name]().chat_template]
BARE = [name for name in FOREIGN if name not in TEMPLATED]
QUESTIONS = [
    "What is 12 + 34?",
    "  two spaces, a tab\tand a break\nin front of 7 ",
    "Übung: naïve 数 🙂 a<b>c",
    "Ends with a space ",
]
ANSWERS = ["<think>\nAdd them. <step>46</think>\nAnswer: 46", "Answer: 7", " 10 "]


def thinking(name: str) -> PreTrainedTokenizerFast:
    """A family's tokenizer after step 1 gave it the thinking tokens."""
    tokenizer = FOREIGN[name]()
    add_thinking_tokens(tiny_llama(rows(name)), tokenizer, THINKING_TOKENS, 0)
    return tokenizer


def as_anybody_would(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]):
    """With plain transformers; the date is fixed beforehand (see test_template)."""
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize("name", [name for name in TEMPLATED if name != "llama3"])
@pytest.mark.parametrize("prepared", [FOREIGN.get, thinking], ids=["as it is", "with thoughts"])
def test_prompts_are_what_apply_chat_template_makes(name: str, prepared) -> None:
    tokenizer = prepared(name) if prepared is thinking else prepared(name)()
    renderer = Renderer(tokenizer)
    turns = (
        {"role": "user", "content": "How many cups?"},
        {"role": "assistant", "content": "Seven cups are there."},
    )
    for turn in ((), turns):
        wanted = [
            as_anybody_would(tokenizer, [*turn, {"role": "user", "content": question}])
            for question in QUESTIONS
        ]
        assert renderer.prompts([Asked(q, turns=turn) for q in QUESTIONS]) == wanted


@pytest.mark.parametrize("name", [name for name in TEMPLATED if name not in ("llama3", "gemma")])
def test_an_instruction_is_a_system_message(name: str) -> None:
    tokenizer = FOREIGN[name]()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 7?"},
    ]
    wanted = as_anybody_would(tokenizer, messages)
    assert Renderer(tokenizer).prompts([Asked("What is 7?", "Be brief.")]) == [wanted]
    own = Asked("What is 7?", "Be brief.", ({"role": "system", "content": "It is 2026."},))
    messages[0]["content"] = "Be brief.\n\nIt is 2026."
    assert Renderer(tokenizer).prompts([own]) == [as_anybody_would(tokenizer, messages)]


def test_without_a_system_role_an_instruction_goes_before_the_first_question() -> None:
    tokenizer = FOREIGN["gemma"]()
    renderer = Renderer(tokenizer)
    wanted = as_anybody_would(tokenizer, [{"role": "user", "content": "Be brief.\nWhat is 7?"}])
    assert renderer.prompts([Asked("What is 7?", "Be brief.")]) == [wanted]
    turns = ({"role": "user", "content": "And 8?"}, {"role": "assistant", "content": "Eight."})
    wanted = as_anybody_would(
        tokenizer,
        [
            {"role": "user", "content": "Be brief.\nAnd 8?"},
            turns[1],
            {"role": "user", "content": "7?"},
        ],
    )
    assert renderer.prompts([Asked("7?", "Be brief.", turns)]) == [wanted]


def test_a_system_message_of_the_data_is_refused_where_there_is_no_such_role() -> None:
    system = ({"role": "system", "content": "You are a pirate."},)
    with pytest.raises(InputError, match=r"'You are a pirate\.'.*has no system role; write it"):
        Renderer(FOREIGN["gemma"]()).prompts([Asked("7?", turns=system)])


def test_turns_that_a_template_refuses_are_an_input_error() -> None:
    turns = ({"role": "user", "content": "8?"},)
    with pytest.raises(
        InputError, match=r"refuses a conversation of the roles user, user: .*alter"
    ):
        Renderer(FOREIGN["gemma"]()).prompts([Asked("7?", turns=turns)])


@pytest.mark.parametrize("name", BARE)
@pytest.mark.parametrize("prompt", ["", "Strategy: divide."])
def test_without_a_template_the_tokenizers_own_encoding_is_used(name: str, prompt: str) -> None:
    """The README's snippet: ``tokenizer("Question: …\\n").input_ids``."""
    tokenizer = FOREIGN[name]()
    wanted = [tokenizer(question_text(question, prompt)).input_ids for question in QUESTIONS]
    assert Renderer(tokenizer).prompts([Asked(q, prompt) for q in QUESTIONS]) == wanted
    if tokenizer.bos_token != tokenizer.eos_token:
        assert {ids[0] for ids in wanted} == {tokenizer.bos_token_id}


def test_an_end_of_sequence_that_a_tokenizer_adds_is_not_in_a_prompt() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = FOREIGN["llama"]()
    without = Renderer(tokenizer).prompts([Asked("7?")])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokenizer("7?").input_ids[-1] == 2
    assert Renderer(tokenizer).prompts([Asked("7?")]) == without


def test_earlier_turns_without_a_template() -> None:
    tokenizer = FOREIGN["gpt2"]()
    turns = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "And 8?"},
        {"role": "assistant", "content": "Answer: 8"},
    )
    text = "Be brief.\nQuestion: And 8?\nAnswer: 8\n\nQuestion: 7?\n"
    assert Renderer(tokenizer).prompts([Asked("7?", turns=turns)]) == [tokenizer(text).input_ids]


@pytest.mark.parametrize("name", FOREIGN)
def test_completions_continue_the_prompt_as_one_text_would(name: str) -> None:
    """A trained row is what the tokenizer makes of the whole text, and the end of the turn."""
    tokenizer = thinking(name)
    renderer = Renderer(tokenizer)
    asked = renderer.prompts([Asked(QUESTIONS[0])])[0]
    text = tokenizer.decode(asked, skip_special_tokens=False)
    told = renderer.completions(ANSWERS)
    for answer, ids in zip(ANSWERS, told, strict=True):
        assert ids[-1] == renderer.end
        written = tokenizer.decode([*asked, *ids[:-1]], skip_special_tokens=False)
        assert written.startswith(text)
        if name == "r1":
            assert written.count("<think>") == written.count("</think>") == 1
            assert written.endswith(answer.removeprefix("<think>\n"))
        else:
            assert written == text + answer
            whole = tokenizer(text.removeprefix("<s> "), add_special_tokens=name in BARE).input_ids
            joined = tokenizer(
                text.removeprefix("<s> ") + answer, add_special_tokens=name in BARE
            ).input_ids
            assert (whole, joined) == (asked, [*asked, *ids[:-1]])


def test_a_thought_that_the_template_opens_is_not_opened_twice() -> None:
    tokenizer = thinking("r1")
    renderer = Renderer(tokenizer)
    assert renderer.opened == "<think>\n"
    prompt = renderer.prompts([Asked("7?")])[0]
    shut = renderer.prompts([Asked("7?")], opened=False)[0]
    assert tokenizer.convert_ids_to_tokens(prompt[len(shut) :]) == ["<think>", "<0x0A>"]
    one, other, direct = (
        tokenizer.decode(ids)
        for ids in renderer.completions(
            ["<think>\nSo.</think>\nAnswer: 7", "<think>So.</think>\nAnswer: 7", "Answer: 7"]
        )
    )
    assert one == other == "So.</think>\nAnswer: 7</s>"
    assert direct == "\n</think>\n\nAnswer: 7</s>"
    assert renderer.turn("So.</think>") == "<think>\nSo.</think>"
    assert Renderer(thinking("qwen3")).opened == ""


ENDS = {
    "llama": "</s>",
    "gemma": "<end_of_turn>",
    "qwen3": "<|im_end|>",
    "gpt2": "<|endoftext|>",
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "r1": "</s>",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_ends_and_stops(name: str) -> None:
    tokenizer, model = FOREIGN[name](), tiny_llama(rows(name))
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    alone = Renderer(tokenizer, model)
    assert tokenizer.convert_ids_to_tokens(alone.end) == ENDS[name]
    assert set(alone.stops) == {alone.end, tokenizer.eos_token_id}
    model.generation_config.eos_token_id = stop_ids(name)
    model.config.eos_token_id = 9
    listed = Renderer(tokenizer, model)
    assert set(listed.stops) == {alone.end, tokenizer.eos_token_id, 9, *stop_ids(name)}
    assert Renderer(tokenizer).end == alone.end


def test_a_stop_beyond_the_vocabulary_is_none() -> None:
    tokenizer, model = FOREIGN["gpt2"](), tiny_llama(rows("gpt2"))
    model.config.eos_token_id = model.generation_config.eos_token_id = 50256
    assert Renderer(tokenizer, model).stops == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("name", FOREIGN)
def test_padding_and_ids_that_no_tokenizer_has(name: str) -> None:
    tokenizer = FOREIGN[name]()
    renderer = Renderer(tokenizer, tiny_llama(rows(name)))
    has_pad = tokenizer.pad_token_id is not None
    assert renderer.pad == (tokenizer.pad_token_id if has_pad else tokenizer.eos_token_id)
    assert renderer.absent == tuple(range(len(tokenizer), rows(name)))
    assert bool(renderer.absent) == (name == "qwen3")
    assert Renderer(tokenizer).absent == ()


def test_the_quick_tokenizers_ids_are_those_of_its_texts() -> None:
    """No template and no BOS: question and completion encoded apart, as ever."""
    tokenizer = tiny_tokenizer()
    add_thinking_tokens(tiny_llama(len(tokenizer)), tokenizer, THINKING_TOKENS, 0)
    renderer = Renderer(tokenizer)
    for question in QUESTIONS:
        for prompt in ("", "Strategy: x."):
            wanted = tokenizer(question_text(question, prompt), add_special_tokens=False).input_ids
            assert renderer.prompts([Asked(question, prompt)]) == [wanted]
    for answer in ANSWERS[:2]:
        wanted = tokenizer(answer, add_special_tokens=False).input_ids
        assert renderer.completions([answer]) == [[*wanted, tokenizer.eos_token_id]]


def test_a_text_that_continues_another_is_encoded_as_it_stands_there() -> None:
    tokenizer = thinking("llama")
    renderer = Renderer(tokenizer)
    close, answer = "</think>", "\nAnswer: 46"
    ids = renderer.following([answer], close)[0]
    joined = tokenizer(f"So{close}{answer}", add_special_tokens=False).input_ids
    assert joined[-len(ids) :] == ids
    assert tokenizer.convert_tokens_to_ids("▁") != ids[0] == joined[joined.index(385) + 1]


@pytest.mark.parametrize("name", FOREIGN)
def test_texts_to_go_on_with(name: str) -> None:
    tokenizer = FOREIGN[name]()
    renderer = Renderer(tokenizer)
    if name in TEMPLATED:
        assert renderer.continued(QUESTIONS) == renderer.prompts([Asked(q) for q in QUESTIONS])
    else:
        wanted = [tokenizer(q).input_ids for q in QUESTIONS]
        assert renderer.continued(QUESTIONS) == wanted


@pytest.mark.parametrize("name", FOREIGN)
def test_what_stands_in_front_of_any_question(name: str) -> None:
    tokenizer = FOREIGN[name]()
    renderer = Renderer(tokenizer)
    ids, after = renderer.around_question
    prompt = renderer.prompts([Asked("What is 7?")])[0]
    assert prompt[: len(ids)] == ids
    rest = tokenizer.decode(prompt[len(ids) :], skip_special_tokens=False)
    assert rest.lstrip() == f"What is 7?{after}"


def test_a_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(InputError, match=r"has no eos token; set tokenizer\.eos_token"):
        Renderer(tiny_tokenizer(eos=False))
