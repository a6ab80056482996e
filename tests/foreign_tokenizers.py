"""Small tokenizers with the habits of other people's, built in a test: nothing is downloaded.

Each has the special tokens, the way of marking spaces and the chat template of its family, and a
vocabulary learned from a few lines. Any text can be encoded. Every call builds a new one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import LINES

# SmolLM2's: a system message of its own where none is given.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Gemma 2's: refuses a system message, trims, calls the assistant "model".
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Qwen3's, shortened: earlier thoughts are dropped, the last turn always has one.
QWEN3 = (
    "{%- if tools %}{{- '<|im_start|>system\n# Tools\n\nCall them in <tool_call></tool_call>: ' }}"
    "{{- tools | tojson + '<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{%- set content = message.content %}{%- set thought = '' %}{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>assistant\n' }}{%- if loop.last %}"
    "{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}{{- content + '<|im_end|>\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
# DeepSeek-R1's distilled models: the generation prompt opens the thought.
R1 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|User|>' + message['content'] }}{% elif message['role'] == 'assistant' %}"
    "{{ '<|Assistant|>' + message['content'].split('</think>')[-1] + eos_token }}{% else %}"
    "{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
# Llama 3.2's: the date of today, in the system message that is always there.
LLAMA3 = (
    "{{- bos_token }}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
    "{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' }}"
    "{{- system + '<|eot_id|>' }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)


def gpt2_like() -> PreTrainedTokenizerFast:
    """Byte-level, one special token, no padding, no template."""
    core = _byte_level(["<|endoftext|>"])
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=end, eos_token=end, unk_token=end
    )


def chatml_like() -> PreTrainedTokenizerFast:
    """SmolLM2: byte-level, ChatML; an end of sequence that is the end of a turn."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
    )


def qwen3_like() -> PreTrainedTokenizerFast:
    """Byte-level, thinking tokens that are not special; its models have more rows than ids."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core = _byte_level(special)
    ordinary = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    core.add_tokens([AddedToken(token, normalized=False, special=False) for token in ordinary])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=QWEN3,
    )


def llama3_like() -> PreTrainedTokenizerFast:
    """Byte-level with BOS, ends of turn other than its eos, no padding, a template with a date."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
    core = _byte_level([*special, "<|eot_id|>"])
    core.post_processor = _bos_first(core, special[0])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=special[0], eos_token=special[1], chat_template=LLAMA3
    )


def llama_like() -> PreTrainedTokenizerFast:
    """SentencePiece with BOS: spaces are ▁, also in front of a text; no padding, no template."""
    core = _sentencepiece(["<unk>", "<s>", "</s>"], prefix=True)
    core.post_processor = _bos_first(core, "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def r1_like() -> PreTrainedTokenizerFast:
    """As `llama_like`, with a template that opens the thought itself."""
    core = _sentencepiece(["<unk>", "<s>", "</s>", "<|User|>", "<|Assistant|>"], prefix=True)
    core.post_processor = _bos_first(core, "<s>")
    core.add_tokens(
        [AddedToken(token, normalized=False, special=False) for token in ("<think>", "</think>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        chat_template=R1,
    )


def gemma_like() -> PreTrainedTokenizerFast:
    """SentencePiece with BOS, no space in front; a template without a system role."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    core = _sentencepiece(special, prefix=False)
    core.post_processor = _bos_first(core, "<bos>")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=GEMMA,
    )


FOREIGN: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "llama": llama_like,
    "gemma": gemma_like,
    "qwen3": qwen3_like,
    "gpt2": gpt2_like,
    "chatml": chatml_like,
    "llama3": llama3_like,
    "r1": r1_like,
}
# What ``eos_token_id`` of the family's generation_config.json lists; others list their eos.
STOPS = {
    "gemma": ("<eos>", "<end_of_turn>"),
    "qwen3": ("<|im_end|>", "<|endoftext|>"),
    "llama3": ("<|end_of_text|>", "<|eot_id|>"),
}


def stop_ids(name: str) -> list[int]:
    """The ``eos_token_id`` of a family's generation configuration, as a list."""
    tokenizer = FOREIGN[name]()
    stops = STOPS.get(name, (tokenizer.eos_token,))
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in stops]


def rows(name: str) -> int:
    """The vocabulary of a family's models: padded to a multiple of 128 for Qwen's."""
    used = len(FOREIGN[name]())
    return -(-(used + 1) // 128) * 128 if name == "qwen3" else used


def _byte_level(special: Sequence[str]) -> Tokenizer:
    core = Tokenizer.from_str(_trained_bytes())
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    return core


@functools.cache
def _trained_bytes() -> str:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    core.train_from_iterator(LINES, trainer)
    return str(core.to_str())


def _sentencepiece(special: Sequence[str], *, prefix: bool) -> Tokenizer:
    """BPE over ▁ with bytes for what it has not seen, as SentencePiece's models are converted."""
    pieces, merges = _trained_pieces()
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    core = Tokenizer(
        models.BPE(
            {name: index for index, name in enumerate(names)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    strip = []
    if prefix:
        core.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
        strip = [decoders.Strip(content=" ", left=1, right=0)]
    else:
        core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    return core


@functools.cache
def _trained_pieces() -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces in order, and merges; a line break is never part of one, as in SentencePiece."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "removed"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Metaspace("▁", prepend_scheme="never"),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=150, show_progress=False, special_tokens=[])
    core.train_from_iterator(LINES, trainer)
    model = json.loads(core.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return pieces, [(first, second) for first, second in model["merges"]]


def _bos_first(core: Tokenizer, bos: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, core.token_to_id(bos))],
    )
