"""An everyday prompt in other people's model: what a finished `bake-prompt` reached, and whether
the model still knows what it knew. A part of `bench_baking`.
"""

from __future__ import annotations

import json
import pydoc_data.topics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Row

from distforge.evaluation.likelihood import log_likelihoods
from distforge.models.loading import Champion, load_champion
from distforge.rendering import Asked, Renderer

# Questions of GSM8K with their reference answers, and pages of Python's own documentation.
QUESTIONS, PAGES, PAGE_TOKENS = 32, 8, 256
_ROWS = 8
ALLOWED_SECONDS = 480.0


def everyday(run: Path, gsm8k: Path) -> dict[str, Any]:
    """The report of a run of ``distforge bake-prompt``, and nats a token before and after it."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    (report,) = summary["reports"]
    rows = [json.loads(line) for line in (gsm8k / "test.jsonl").open(encoding="utf-8")]
    before, after = (
        nats_a_token(load_champion(where), rows[:QUESTIONS])
        for where in (summary["champion"], str(run / "model"))
    )
    return {**report, "before": before, "after": after}


def nats_a_token(champion: Champion, rows: Sequence[dict[str, str]]) -> dict[str, float]:
    """How unlikely the model finds reference answers (as a document, and asked through its chat
    template) and ordinary text."""
    renderer = Renderer(champion.tokenizer, champion.model)
    answers = renderer.documents([f" {row['answer']}" for row in rows])
    pages = [text for _, text in sorted(pydoc_data.topics.topics.items()) if len(text) > 4000]
    known = {
        "reference answers": renderer.documents(
            [f"Question: {r['question']}\nAnswer:" for r in rows]
        ),
        "reference answers, asked": renderer.prompts([Asked(r["question"]) for r in rows]),
    }
    found = {
        name: _mean(champion, [[*a, *b] for a, b in zip(asked, answers, strict=True)], asked)
        for name, asked in known.items()
    }
    texts = [ids[:PAGE_TOKENS] for ids in renderer.documents(pages[:PAGES])]
    found["ordinary text"] = _mean(champion, texts, [ids[:1] for ids in texts])
    return found


def _mean(
    champion: Champion, rows: Sequence[Sequence[int]], known: Sequence[Sequence[int]]
) -> float:
    given = [len(ids) for ids in known]
    nats = log_likelihoods(champion.model, rows, given, _ROWS)
    return -sum(nats) / (sum(map(len, rows)) - sum(given))


def everyday_rows(found: dict[str, Any]) -> list[Row]:
    """KL, adherence, seconds, and what is left of other abilities."""
    before, after = found["kl_before"], found["kl_after"]
    cells = found["conditions"]
    ours, peer = cells["baked"]["adherence"], cells["prompted"]["adherence"]
    told = f"{cells['unprompted']['adherence']:.1%} before the bake"
    rows = [
        Row(
            "everyday prompt: held-out KL", after, "no bake", before, "nats a token", before / after
        ),
        Row(
            f"everyday prompt: adherence without the prompt, {cells['baked']['questions']} "
            f"questions, {told}",
            ours,
            "champion with it",
            peer,
            "fraction",
            ours / max(peer, 1e-9),
        ),
        Row(
            f"everyday prompt: time of the bake, {found['steps']} steps",
            found["seconds"],
            "allowed",
            ALLOWED_SECONDS,
            "s",
            ALLOWED_SECONDS / found["seconds"],
        ),
    ]
    for name, value in found["before"].items():
        now = found["after"][name]
        work = f"everyday prompt: {name}"
        rows.append(Row(work, now, "before the bake", value, "nats a token", value / now))
    return rows
