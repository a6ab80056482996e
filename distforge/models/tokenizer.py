"""The tokenizer of the embedded champion: byte-level BPE shaped for exact small arithmetic.

Digits and lone capitals are always one id each, and never swallow the space before them, so "7" is
the same token in "17", " 7" and "=7". Words keep their leading space, as in GPT-2. Thinking tokens
are whole ids (a tag split in pieces does not train).
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distforge.activity import named
from distforge.data.strategies import THINKING_TOKENS

PAD, EOS = "<pad>", "<eos>"
_PIECES = Regex(r"\d|[A-Z](?![a-z])| ?[A-Z]?[a-z]+|[^\sA-Za-z\d]|\s")


@named("training a tokenizer")
def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train on ``texts``; at most ``vocab_size`` ids, the eight thinking tokens on top of them.

    Any text can be encoded (every byte has an id) and decodes to itself.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Tags must not be learned as words: they are added whole below.
    tokenizer.train_from_iterator((_without_tags(text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in THINKING_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def _without_tags(text: str) -> str:
    for token in THINKING_TOKENS:
        text = text.replace(token, "\n")
    return text
