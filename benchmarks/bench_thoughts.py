"""Speed of thinking: thoughts in parallel, and text that is written while thinking.

    OMP_NUM_THREADS=1 python benchmarks/bench_thoughts.py --json benchmarks/results/thoughts.json

Thoughts at every position of a text are compared with the dense form of Quiet-STaR's algorithm
(arXiv 2403.09629, section 4.2 and figure 3), written here from its description: for each thought
token one forward pass over the text and all thoughts so far, under one mask over all of them,
without a cache. It is favoured in one way: its output head runs on the newest tokens alone. Both
draw the same tokens from the same random numbers, which is checked.

`ThinkingModel.generate` is compared, per token that it emits (those of thoughts included, tags
not), with decoding the same batch without thoughts: transformers' `generate` or a bare loop over
its cache, whichever is faster. The time to read the prompts, the same for all, is taken off.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import Row, arguments, publish
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from distforge.models.architectures import build_model, preset
from distforge.quietstar import ThinkingModel
from distforge.thinking.language_model import head_at
from distforge.thinking.packing import packed_mask
from distforge.thinking.positions import PositionsConfig
from distforge.thinking.sampling import ThoughtConfig, draw, restricted_logits
from distforge.thinking.tags import Tags
from distforge.thinking.thoughts import sample_thoughts

VOCAB = 2_000
TAGS = Tags(open=2, close=3, pad=0, eos=None)


@dataclass(frozen=True)
class Parallel:
    """Thoughts of ``tokens`` tokens at every position of a text of ``length`` tokens."""

    model: str
    length: int
    tokens: int


@dataclass(frozen=True)
class Written:
    """``visible`` tokens after ``batch`` prompts, with thoughts of ``tokens`` tokens.

    mixing: with a mixing head, which needs the predictions of the bare text as well.
    """

    model: str
    batch: int
    prompt: int
    visible: int
    tokens: int
    positions: PositionsConfig
    mixing: bool = True


def build(name: str) -> PreTrainedModel:
    return build_model(preset(name), VOCAB, 0, eos_token_id=1, pad_token_id=0).eval()


def alternating(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, after one call that is not counted; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if turn:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


@torch.no_grad()
def dense_thoughts(
    lm: PreTrainedModel, text: Tensor, config: ThoughtConfig, uniform: Tensor
) -> Tensor:
    """(L, T) thought tokens after each token of ``text`` (L,), by one dense pass for each column.

    The sequence is the text, then one token of every thought, then the next one of every thought.
    """
    length = len(text)
    columns = torch.arange(length)
    ids, thoughts = [text, torch.full_like(text, TAGS.open)], []
    for step in range(config.max_tokens):
        sequence = torch.cat(ids)[None]
        branch = torch.cat([torch.zeros_like(columns), (columns + 1).repeat(step + 1)])[None]
        anchor = columns.repeat(step + 2)[None]
        places = torch.cat([columns, *(columns + 1 + i for i in range(step + 1))])[None]
        newest = torch.arange(sequence.shape[1] - length, sequence.shape[1])
        with head_at(lm, newest):
            logits = lm(
                input_ids=sequence,
                attention_mask=packed_mask(branch, anchor),
                position_ids=places,
                use_cache=False,
            ).logits
        drawn, _ = draw(restricted_logits(logits, TAGS, config), uniform[:, step])
        thoughts.append(drawn)
        ids.append(drawn)
    return torch.stack(thoughts, dim=1)


def parallel_row(case: Parallel) -> Row:
    lm = build(case.model)
    config = ThoughtConfig(max_tokens=case.tokens)
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(4, VOCAB, (case.length,), generator=generator)
    positions = torch.arange(case.length)
    rows = torch.zeros_like(positions)

    def ours() -> Tensor:
        seeded = torch.Generator().manual_seed(1)
        mask = torch.ones(1, case.length, dtype=torch.int64)
        return sample_thoughts(lm, text[None], mask, rows, positions, TAGS, config, seeded).tokens

    def dense() -> Tensor:
        seeded = torch.Generator().manual_seed(1)
        uniform = torch.rand(case.length, case.tokens, generator=seeded)
        return dense_thoughts(lm, text, config, uniform)

    ours()
    seconds, written = {}, {}
    for name, work in {"ours": ours, "dense": dense}.items():
        began = time.perf_counter()
        written[name] = work()
        seconds[name] = time.perf_counter() - began
    # A draw that falls on the border of two tokens may go either way in another order of sums.
    agreement = float((written["ours"] == written["dense"]).float().mean())
    assert agreement > 0.99, f"the two write other tokens: {agreement:.3f} are equal"
    made = case.length * case.tokens
    return Row(
        f"{case.tokens} thought tokens after each of {case.length} tokens, {case.model} model",
        made / seconds["ours"],
        "dense form, no cache",
        made / seconds["dense"],
        "tokens/s",
        seconds["dense"] / seconds["ours"],
    )


@torch.no_grad()
def plain_loop(lm: PreTrainedModel, ids: Tensor, count: int) -> Tensor:
    """Greedy decoding over transformers' cache, and nothing else."""
    cache = DynamicCache()
    token, written = ids, []
    for _ in range(count):
        logits = lm(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        token = logits[:, -1:].argmax(dim=-1)
        written.append(token)
    return torch.cat(written, dim=1)


def written_row(case: Written, repeats: int) -> Row:
    lm = build(case.model)
    model = ThinkingModel.wrap(lm, mixing=case.mixing).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCAB, (case.batch, case.prompt), generator=generator)
    prompts = ids.tolist()
    config = ThoughtConfig(max_tokens=case.tokens, greedy=True)
    emitted = 0
    settings = GenerationConfig(
        max_new_tokens=case.visible, min_new_tokens=case.visible, do_sample=False, pad_token_id=0
    )
    lm.generation_config = settings

    def thinking() -> None:
        nonlocal emitted
        rows = model.generate(prompts, TAGS, case.visible, positions=case.positions, thought=config)
        emitted = rows[0].emitted

    def transformers() -> None:
        lm.generate(input_ids=ids, attention_mask=torch.ones_like(ids))

    works = {
        "ours": thinking,
        "transformers.generate": transformers,
        "bare loop": lambda: plain_loop(lm, ids, case.visible),
        "prompts": lambda: plain_loop(lm, ids, 1),
    }
    seconds = alternating(works, repeats)
    reading, thinking_seconds = seconds.pop("prompts"), seconds.pop("ours")
    # The prompts' pass predicts the first token of plain text; a thought needs its opening read.
    ours = 1e3 * (thinking_seconds - reading) / emitted
    peer = min(seconds, key=seconds.__getitem__)
    plain = 1e3 * (seconds[peer] - reading) / (case.visible - 1)
    head = "mixing head" if case.mixing else "no mixing head"
    return Row(
        f"generate, {case.positions.kind}: {case.visible} visible of {emitted} emitted tokens, "
        f"thoughts of {case.tokens}, {head}, batch {case.batch}, {case.model} model",
        ours,
        f"plain decoding ({peer})",
        plain,
        "ms a token",
        plain / ours,
    )


def cases(quick: bool) -> tuple[list[Parallel], list[Written]]:
    every, before = PositionsConfig("all"), PositionsConfig("answer")
    if quick:
        return [Parallel("embedded", 32, 4)], [Written("embedded", 2, 16, 8, 4, every)]
    parallel = [Parallel("embedded", length, 16) for length in (64, 128, 256)]
    parallel += [Parallel("25m", length, 16) for length in (128, 256)]
    written = [
        case
        for name in ("embedded", "25m")
        for case in (
            Written(name, 1, 64, 16, 8, every),
            Written(name, 8, 64, 16, 8, every),
            Written(name, 8, 64, 32, 32, before, mixing=False),
        )
    ]
    return parallel, written


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--only",
        choices=("parallel", "generate"),
        help="measure one half; the other's rows are kept as they stand in --json",
    )
    options = parser.parse_args()
    parallel, written = cases(options.quick)
    halves: dict[str, list[Row]] = {"parallel": [], "generate": []}
    if options.only and options.json.exists():
        for row in json.loads(options.json.read_text(encoding="utf-8"))["rows"]:
            halves["generate" if row["work"].startswith("generate") else "parallel"].append(
                Row(**row)
            )
    if options.only != "generate":
        halves["parallel"] = [parallel_row(case) for case in parallel]
    if options.only != "parallel":
        repeats = 1 if options.quick else 3
        halves["generate"] = [written_row(case, repeats) for case in written]
    rows = halves["parallel"] + halves["generate"]
    publish(rows, options.json, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
