"""Step 2 from questions and rewards alone: no gold answers are trained on, no traces are needed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from distforge.activity import format_seconds
from distforge.config import config_sha256
from distforge.data.files import write_examples
from distforge.evaluation.intervals import bootstrap_mean
from distforge.models.context import context_length
from distforge.models.loading import Champion, load_champion
from distforge.quietstar.asked import (
    AskedItem,
    Row,
    asked_items,
    columns_of,
    opening_of,
    read_questions,
    rendered,
    rows_sha256,
    said_last,
)
from distforge.quietstar.baked_record import BakedRecord, read_baked_record
from distforge.quietstar.inputs import find_model, questions_of, split_probed
from distforge.quietstar.publish import publish
from distforge.quietstar.step2_config import NOT_IDENTITY, Step2Config
from distforge.quietstar.trainer import ThoughtOutcome, ThoughtTrainer
from distforge.quietstar.writing import Answer, AnswerTags, Writing
from distforge.reports.step2_summary import Step2Summary
from distforge.rewards import RewardFunctions
from distforge.rollouts.engines.interpreter import require_interpreter
from distforge.theater.measures import unknown_verdict
from distforge.thinking.model import ThinkingModel
from distforge.training.distributed import World
from distforge.training.open_run import Run, open_run

# What an answer costs that is sampled and learned from, where one that is examined costs 1.
_LEARNING = 4
_UNJUDGED = "the model writes thought and answer as one, which `distforge judge` can separate"


@dataclass(frozen=True)
class RewardedInputs:
    """``sha256`` is of ``rows``. ``probed`` items pick the weights, ``heldout`` ones are
    examined."""

    baked: Champion
    record: BakedRecord
    rows: list[Row]
    sha256: str
    items: list[AskedItem]
    probed: list[AskedItem]
    heldout: list[AskedItem]
    writing: Writing


def run_rewarded(config: Step2Config, world: World) -> Step2Summary:
    """As `run_step2_rl`, which calls it where ``config.reward.function`` names functions.

    The model may be any: one without thinking tokens writes as its chat template has it write.
    """
    config = replace(config, thought=replace(config.thought, closing="learned"))
    inputs = load_rewarded(config)
    with open_run(config, 2, NOT_IDENTITY, world) as run:
        run.start_from(data=inputs.sha256, baked_model=inputs.baked.sha256)
        summary = _reinforce(config, inputs, run, world)
        run.end(summary.is_goal_reached, "not shown to be better than the baked model")
        return summary


def load_rewarded(config: Step2Config) -> RewardedInputs:
    """All that such a run starts from.

    Raises:
        InputError: what cannot be used, before anything is written.
    """
    functions = RewardFunctions(
        config.reward.function, config.reward.weights, config.reward.deadline_seconds
    )
    require_interpreter(config.rollouts)
    baked = load_champion(str(find_model(config.baked)))
    rows = read_questions(questions_of(config))
    functions.require_columns(columns_of(rows))
    tokenizer, told = baked.tokenizer, config.reward.instruction
    prompts = rendered(rows, tokenizer, told)
    tags = AnswerTags.of(tokenizer, baked.model, opening_of(prompts))
    context = context_length(baked.model) or config.data.max_length
    longest = min(config.data.max_length, context - 1) - config.thought.max_tokens - 1
    train, heldout = (_items(rows, prompts, split, longest) for split in ("train", "heldout"))
    # Every question is a source of its own, so this cuts the list in two.
    cut = len(split_probed(heldout, config.probe.items)[0])
    probed, examined = heldout[:cut], heldout[cut:]
    return RewardedInputs(
        baked,
        read_baked_record(baked, config.baked_accuracy, expected=False),
        rows,
        rows_sha256(rows),
        train,
        probed,
        examined[: config.probe.exam_items or None],
        Writing(tokenizer, tags, config.thought, functions),
    )


def _items(
    rows: Sequence[Row], prompts: Sequence[Sequence[int]], split: str, longest: int
) -> list[AskedItem]:
    chosen = [n for n, row in enumerate(rows) if row.example.split == split]
    return asked_items([rows[n] for n in chosen], [prompts[n] for n in chosen], longest)


def _reinforce(config: Step2Config, inputs: RewardedInputs, run: Run, world: World) -> Step2Summary:
    began = time.monotonic()
    torch.manual_seed(config.seed)
    model = ThinkingModel.wrap(inputs.baked.model, mixing=False).to(world.device)
    parameters = model.num_parameters()
    run.log.say(_plan(config, inputs))
    batch, writing = config.probe.batch_size, inputs.writing
    before = writing.answer(model, inputs.heldout, batch, world, 0)
    examined = time.monotonic() - began
    run.log.say(_estimate(config, inputs, before, examined))
    trainer = ThoughtTrainer(
        model,
        inputs.baked.tokenizer,
        inputs.items,
        inputs.probed,
        config,
        world,
        run.log,
        run.directory,
        run.record,
        writing=writing,
    )
    heldout = run.directory / "data" / "heldout.jsonl"
    if world.is_main:
        write_examples(
            (row.example for row in inputs.rows if row.example.split == "heldout"), heldout
        )
    run.record.start()
    outcome = trainer.train()
    model_dir = trainer.save_model(run.directory / "model")
    run.log.say(f"examining the exported model on {len(inputs.heldout)} held-out questions")
    exported = ThinkingModel.from_pretrained(model_dir).to(world.device)
    after = writing.answer(exported, inputs.heldout, batch, world, outcome.steps)
    summary = _summarize(
        config,
        inputs,
        before,
        after,
        outcome,
        parameters=parameters,
        seconds=round(time.monotonic() - began, 1),
        model_dir=str(run.directory / "model"),
        heldout=str(heldout),
    )
    if world.is_main:
        samples = [_sample(*pair) for pair in zip(inputs.heldout, after, strict=True)]
        summary = publish(config, summary, samples, run.directory, run.log, run.record)
    world.barrier()
    return summary


def _plan(config: Step2Config, inputs: RewardedInputs) -> str:
    episodes = config.episodes
    return (
        f"{episodes.loop.max_steps} steps of {episodes.batch_size} of {len(inputs.items)} "
        f"questions, {episodes.thoughts} answers to each of at most {config.thought.max_tokens} "
        f"tokens; first an exam of the untrained model, on {len(inputs.heldout)} held-out ones"
    )


def _estimate(
    config: Step2Config, inputs: RewardedInputs, before: Sequence[Answer], seconds: float
) -> str:
    """How the model did, and how long the run may take by the ``seconds`` that it took for it."""
    episodes, steps, each = config.episodes, config.episodes.loop.max_steps, seconds / len(before)
    probes = 1 + -(-steps // config.probe.every_steps)
    answers = probes * len(inputs.probed) + len(before)
    learned = steps * episodes.batch_size * episodes.thoughts
    told = format_seconds(each * (answers + _LEARNING * learned))
    mean = sum(answer.reward for answer in before) / len(before)
    cut = sum(not answer.finished for answer in before) / len(before)
    return (
        f"before training: reward {mean:.3f}, {cut:.0%} of the answers cut at thought.max_tokens; "
        f"the run may take about {told}, less where the answers to a question earn equal rewards"
    )


def _summarize(
    config: Step2Config,
    inputs: RewardedInputs,
    before: Sequence[Answer],
    after: Sequence[Answer],
    outcome: ThoughtOutcome,
    **known: Any,
) -> Step2Summary:
    """The gain is in reward, over questions; a reward in [0, 1] is an accuracy as well."""
    old, new = ([answer.reward for answer in answers] for answers in (before, after))
    gain = bootstrap_mean([b - a for a, b in zip(old, new, strict=True)])
    fraction = all(0 <= reward <= 1 for reward in (*old, *new))
    # There is no thought that could be taken away before the answer is written.
    verdict = unknown_verdict(config.theater, len(new), _UNJUDGED)
    return Step2Summary(
        improved=gain.low > 0,
        accuracy_overall=sum(new) / len(new) if fraction else math.nan,
        accuracy={},
        token_usage={},
        before_accuracy=sum(old) / len(old) if fraction else math.nan,
        before_accuracy_by_strategy={},
        controls={},
        bits={},
        intervals={"gain": (gain.low, gain.high)},
        gain=gain.mean,
        items=len(new),
        task="reward",
        verdict=verdict.outcome,
        theater=verdict.as_json(),
        registry_version="",
        episodes=outcome.episodes,
        steps=outcome.steps,
        best_step=outcome.best.step,
        config_sha256=config_sha256(config, exclude=NOT_IDENTITY),
        dataset_sha256=inputs.sha256,
        baked=inputs.baked.source,
        baked_sha256=inputs.baked.sha256,
        **inputs.record.as_fields(),
        **known,
    )


def _sample(item: AskedItem, answer: Answer) -> dict[str, Any]:
    asked = said_last(item.prompt)
    return {
        "strategy": "",
        "question": asked,
        "prompt": asked,
        "generated": answer.text,
        "answer": None,
        "expected": str(item.columns.get("expected", "")),
        "verdict": "right" if answer.reward > 0 else "wrong",
        "why": f"reward {answer.reward:g}{'' if answer.finished else ', cut at the cap'}",
    }
