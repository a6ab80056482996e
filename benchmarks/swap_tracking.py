"""Swap tracking in S5: the smallest task that provably needs steps in between.

A ball lies under one of five cups; sixteen swaps follow; where is it? A thought of eight tokens can
say where it is after every second swap. Composing permutations of five has no shortcut of fixed
depth, so a shallow model that must answer at once stays at chance, 20%.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from distforge.theater.conditions import ThoughtProbe
from distforge.thinking.items import ThoughtItem
from distforge.thinking.tags import CLOSE, OPEN, Tags
from distforge.thinking.thoughts import ThoughtConfig

CUPS, SWAPS, STEPS = 5, 16, 8
CHANCE = 1 / CUPS
FILLER = "."
_PAIRS = list(itertools.combinations(range(CUPS), 2))
_WORDS = (
    ["<pad>", "<eos>", OPEN, CLOSE, FILLER]
    + [str(cup) for cup in range(CUPS)]
    + [f"{a}&{b}" for a, b in _PAIRS]
)
THOUGHT = ThoughtConfig(max_tokens=STEPS, closing="fixed")
BAKED_BATCH, BAKED_LR = 256, 1e-3


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word a token: cups, swaps, both tags, a filler."""
    words = {word: index for index, word in enumerate(_WORDS)}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def make_model(seed: int) -> GPT2LMHeadModel:
    """About 100,000 parameters: 2 layers, width 64, 4 heads, learned positions."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(_WORDS),
        n_positions=1 + SWAPS + STEPS + 4,
        n_embd=64,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu",
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=_WORDS.index("<eos>"),
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(config)


def make_items(count: int, seed: int) -> list[ThoughtItem]:
    """Random questions; of 5 · 10^16, so two draws never share one."""
    first_cup, first_swap = _WORDS.index("0"), _WORDS.index("0&1")
    generator = random.Random(seed)
    items = []
    for number in range(count):
        ball = generator.randrange(CUPS)
        swaps = [generator.randrange(len(_PAIRS)) for _ in range(SWAPS)]
        text, gold = [first_cup + ball], []
        for step, swap in enumerate(swaps):
            pair = _PAIRS[swap]
            ball = pair[1 - pair.index(ball)] if ball in pair else ball
            text.append(first_swap + swap)
            if step % 2:
                gold.append(first_cup + ball)
        answer = (first_cup + ball,)
        last = (len(text) - 1,)
        items.append(ThoughtItem(f"{seed}:{number}", tuple(text), last, (answer,), tuple(gold)))
    return items


class SupervisedTraining:
    """AdamW on batches of 256 fresh items.

    Args:
        thought: "gold" trains on the true thoughts and the answers; "filler" gives eight fillers
            and trains on the answers; "none" trains on the answers right after the question.
        seed: of the items.
    """

    def __init__(
        self, model: GPT2LMHeadModel, tags: Tags, thought: str, seed: int, lr: float = BAKED_LR
    ) -> None:
        self.steps = 0
        self._model, self._tags, self._thought, self._seed = model, tags, thought, seed
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=lr)

    def run(self, steps: int) -> None:
        """Take so many steps."""
        self._model.train()
        for _ in range(steps):
            items = make_items(BAKED_BATCH, self._seed * 1_000_000 + self.steps)
            ids, labels = _supervised_batch(items, self._tags, self._thought)
            logits = self._model(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
            )
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
            self.steps += 1
        self._model.eval()


def bake_partly(
    seed: int, tags: Tags, wanted: float, probed: Sequence[ThoughtItem], most: int = 3000
) -> tuple[GPT2LMHeadModel, int]:
    """A model trained on true thoughts until it answers ``wanted`` of ``probed`` greedily, and its
    steps; looked at every tenth.

    Raises:
        RuntimeError: it does not get there in ``most`` steps.
    """
    model = make_model(seed)
    training = SupervisedTraining(model, tags, "gold", seed + 1)
    while training.steps < most:
        training.run(10)
        if accuracy(model, probed, tags, "own") >= wanted:
            return model, training.steps
    raise RuntimeError(f"seed {seed} does not reach {wanted:.0%} in {most} steps")


def accuracy(
    model: torch.nn.Module, items: Sequence[ThoughtItem], tags: Tags, condition: str
) -> float:
    """Fraction of ``items`` answered rightly under a condition of `ThoughtProbe`."""
    probe = ThoughtProbe(model, items, tags, THOUGHT, batch_size=500)
    return float(probe.ask(condition).hits.float().mean())


def _supervised_batch(
    items: Sequence[ThoughtItem], tags: Tags, thought: str
) -> tuple[Tensor, Tensor]:
    filler = _WORDS.index(FILLER)
    ids, labels = [], []
    for item in items:
        assert item.gold is not None
        inside = {"gold": list(item.gold), "filler": [filler] * STEPS}.get(thought)
        middle = [] if inside is None else [tags.open, *inside, tags.close]
        answer = item.targets[0][0]
        ids.append([*item.text, *middle, answer])
        taught = [-100] * len(item.text)
        if inside is not None:
            shown = inside if thought == "gold" else [-100] * STEPS
            taught += [-100, *shown, -100]
        labels.append([*taught, answer])
    return torch.tensor(ids), torch.tensor(labels)
