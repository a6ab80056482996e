"""What the parts of `bench_baking` found, as rows of its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness import Row

SECONDS_ALLOWED = 120.0
SPEARMAN_WANTED = 0.95


def prompt_rows(strategy: str, report: dict[str, Any]) -> list[Row]:
    """KL, accuracy, adherence and seconds of one bake."""
    baked, prompted = (report["conditions"][name] for name in ("baked", "prompted"))
    before, after = report["kl_before"], report["kl_after"]
    rows = [
        Row(f"{strategy}: held-out KL", after, "no bake", before, "nats a token", before / after)
    ]
    for quantity in ("accuracy", "adherence"):
        ours, peer = baked[quantity], prompted[quantity]
        rows.append(
            Row(
                f"{strategy}: {quantity} without the prompt, {baked['questions']} questions",
                ours,
                "champion with it",
                peer,
                "fraction",
                ours / max(peer, 1e-9),
            )
        )
    seconds = report["seconds"]
    # A clock that ran beside other work tells nothing: such a part's seconds are set to null.
    if seconds is not None:
        work = f"{strategy}: time of the bake, {report['steps']} steps"
        ratio = SECONDS_ALLOWED / seconds
        rows.append(Row(work, seconds, "allowed", SECONDS_ALLOWED, "s", ratio))
    return rows


def other_rows(parts: dict[str, Any], order: Sequence[str]) -> list[Row]:
    """Strength, pursuit, sequence (of strategies in ``order``) and memory, as far as measured."""
    rows = []
    if "strength" in parts:
        for name, found in parts["strength"]["sweeps"].items():
            graded = found["graded"]
            for what, rho in (
                ("adherence by graded strength", graded["spearman"]),
                ("adherence by scale", found["spearman"]),
                ("closeness in KL by scale", found["spearman_kl"]),
            ):
                work = f"{name}: {what}, {found['questions']} questions"
                rows.append(
                    Row(
                        work,
                        rho,
                        "wanted",
                        SPEARMAN_WANTED,
                        "Spearman's rho",
                        rho / SPEARMAN_WANTED,
                    )
                )
    if "pursuit" in parts:
        cells = parts["pursuit"]["rounds"]
        first, last = cells[0]["adherence"], cells[-1]["adherence"]
        count = cells[0]["questions"]
        work = f"weak prompt: adherence after {len(cells)} rounds of pursuit, {count} questions"
        rows.append(Row(work, last, "one bake", first, "fraction", last / max(first, 1e-9)))
    if "sequence" in parts:
        accuracy = parts["sequence"]["accuracy"]
        last, own = accuracy[-1][0], accuracy[1][0]
        count = parts["sequence"]["questions"]
        work = f"{order[0]}: accuracy after baking {order[1]} too, {count} questions"
        rows.append(Row(work, last, "before that", own, "fraction", last / max(own, 1e-9)))
    if "memory" in parts:
        memory = parts["memory"]
        (small, large), (_, naive) = memory["chunked"], memory["naive"]
        few, many = memory["vocabularies"]
        work = f"peak memory of the loss, {memory['tokens']} tokens, vocabulary {many}"
        for peer, value in ((f"vocabulary {few}", small), ("not chunked", naive)):
            rows.append(Row(work, large / 1e6, peer, value / 1e6, "MB", value / large))
    return rows
